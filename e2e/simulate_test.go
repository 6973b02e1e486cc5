package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

// A fleet as users would have it: what is accepted is stored, and what is stored is projected, each once.
func TestSimulatedFleet(t *testing.T) {
	t.Parallel()
	const devices, count = 200, 20_000
	p := shared(t)
	prefix := unique("fleet") + "-"
	sim := platformCommand(t, nil, "simulate", "--url", "mqtt://"+p.mqtt, "--devices", fmt.Sprint(devices), "--count", fmt.Sprint(count),
		"--rate", "0", "--duration", "0", "--prefix", prefix, "--json")
	require.Zero(t, sim.code, "%s", sim.stderr.tail())
	var summary struct {
		Acked  int     `json:"acked"`
		Failed int     `json:"failed"`
		Rate   float64 `json:"rate_per_second"`
	}
	require.NoError(t, json.Unmarshal([]byte(sim.stdout.String()), &summary))
	require.Equal(t, count, summary.Acked)
	require.Zero(t, summary.Failed)
	t.Logf("%.0f events/s accepted", summary.Rate)

	if !live {
		countInTables(t, p, prefix, devices, count)
	}
	names := fleet(t, p, prefix, devices)
	if live { // a broker between acknowledges before the events are stored
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			stored, err := total(names, func(name string) (int, error) {
				items, err := p.eventsOf(t.Context(), name)
				return len(items), err
			})
			require.NoError(c, err)
			require.Equal(c, count, stored, "stored")
		}, wait, tick)
	}
	sum, err := total(names, func(name string) (int, error) { return p.checkDevice(t.Context(), name) })
	require.NoError(t, err)
	require.Equal(t, count, sum, "stored = accepted, by the query API")
}

// total asks for a number of each device, several at a time, and returns their sum.
func total(names []string, ask func(name string) (int, error)) (int, error) {
	var asking errgroup.Group
	asking.SetLimit(8)
	var sum atomic.Int64
	for _, name := range names {
		asking.Go(func() error {
			n, err := ask(name)
			sum.Add(int64(n))
			return err
		})
	}
	err := asking.Wait()
	return int(sum.Load()), err
}

// countInTables waits until as many events are stored and as many devices projected, and the projections have seen the
// last event of each.
func countInTables(t *testing.T, p *platform, prefix string, devices, count int) {
	t.Helper()
	db := pool(t, p.database)
	var stored, projected, behind int
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		err := db.QueryRow(t.Context(), `
			WITH log AS (SELECT aggregate_id, count(*) AS n, max(position) AS newest FROM event_store WHERE starts_with(aggregate_id, $1) GROUP BY 1)
			SELECT coalesce(sum(n), 0)::int, count(p)::int, (count(*) FILTER (WHERE p.position IS DISTINCT FROM newest))::int
			FROM log LEFT JOIN projections p ON p.projection_type = 'sensor_state' AND p.aggregate_id = log.aggregate_id`, prefix).
			Scan(&stored, &projected, &behind)
		require.NoError(c, err)
		require.Equal(c, []int{count, devices, 0}, []int{stored, projected, behind}, "stored, projected, behind")
	}, wait, tick)
	var left int
	require.NoError(t, db.QueryRow(t.Context(), `SELECT count(*) FROM outbox WHERE starts_with(aggregate_id, $1)`, prefix).Scan(&left))
	require.Zero(t, left, "rows left in the outbox")
}

// fleet waits until every device has its projection, and returns their names.
func fleet(t *testing.T, p *platform, prefix string, devices int) (names []string) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		names = nil
		for path := "/api/v1/projections/sensor_state?limit=1000"; path != ""; {
			var page struct {
				Items      []projection `json:"items"`
				NextCursor string       `json:"next_cursor"`
			}
			status, err := p.get(t.Context(), path, &page)
			require.NoError(c, err)
			require.Equal(c, http.StatusOK, status)
			for _, s := range page.Items {
				if strings.HasPrefix(s.AggregateID, prefix) {
					names = append(names, s.AggregateID)
				}
			}
			if path = ""; page.NextCursor != "" {
				path = "/api/v1/projections/sensor_state?limit=1000&cursor=" + page.NextCursor
			}
		}
		require.Len(c, names, devices)
	}, wait, tick)
	return names
}

// checkDevice returns how many events a device has in the log, after its projection has been found to be the newest.
func (p *platform) checkDevice(ctx context.Context, name string) (int, error) {
	items, err := p.eventsOf(ctx, name)
	if err != nil {
		return 0, err
	}
	var newest storedEvent
	for _, e := range items {
		if order := e.EventTime.Compare(newest.EventTime); order > 0 || order == 0 && e.EventID > newest.EventID {
			newest = e
		}
	}
	var s projection
	for {
		status, err := p.get(ctx, "/api/v1/projections/sensor_state/"+name, &s)
		if err != nil || status != http.StatusOK {
			return 0, fmt.Errorf("read projection of %s: status %d, error %w", name, status, err)
		}
		if s.Position >= items[0].Metadata.Position {
			break
		}
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
	}
	if s.LastEventID != newest.EventID {
		return 0, fmt.Errorf("%s shows event %s, the newest is %s", name, s.LastEventID, newest.EventID)
	}
	return len(items), nil
}

// eventsOf returns what a device has in the log, at most 1000 events, the newest position first.
func (p *platform) eventsOf(ctx context.Context, name string) ([]storedEvent, error) {
	var page struct {
		Items []storedEvent `json:"items"`
	}
	if status, err := p.get(ctx, eventsPath+"?limit=1000&aggregate_id="+name, &page); err != nil || status != http.StatusOK {
		return nil, fmt.Errorf("read events of %s: status %d, error %w", name, status, err)
	}
	return page.Items, nil
}
