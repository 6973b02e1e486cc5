package store

import (
	"fmt"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/stretchr/testify/require"
)

func TestTheRowCacheIsBounded(t *testing.T) {
	t.Parallel()
	c := newRowCache(10_000)
	row := func(i int) *located {
		return &located{Projection: Projection{Type: "t", AggregateID: fmt.Sprint(i), State: jsontext.Value(`{"value":1}`)}}
	}
	first := row(0)
	c.remember([]*located{first})
	for i := range 1000 {
		c.remember([]*located{row(i + 1)})
		found, unknown := c.lookup([]ProjectionKey{first.key()}) // the one that is in use stays
		require.Len(t, found, 1)
		require.Empty(t, unknown)
		require.LessOrEqual(t, c.bytes, c.max)
	}
	require.Greater(t, len(c.rows), 10)
	_, unknown := c.lookup([]ProjectionKey{row(1).key(), row(1000).key()})
	require.Equal(t, []ProjectionKey{row(1).key()}, unknown)

	for i := range 1001 {
		c.forget([]*located{row(i)})
	}
	require.Zero(t, c.bytes)
	require.Empty(t, c.rows)
	require.Zero(t, c.used.Len())
}
