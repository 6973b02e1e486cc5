package fault

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

type sqlError string

func (e sqlError) Error() string    { return "SQLSTATE " + string(e) }
func (e sqlError) SQLState() string { return string(e) }

// What a database says decides whether a message is dead, or waits for it.
func TestKindsOfDatabaseErrors(t *testing.T) {
	t.Parallel()
	const unstorable, outage, other = "unstorable", "outage", "other"
	for code, kind := range map[string]string{
		"22003": unstorable, // numeric_value_out_of_range
		"22021": unstorable, // character_not_in_repertoire: \u0000
		"22P05": unstorable, // untranslatable_character
		"23502": unstorable, // not_null_violation
		"23514": unstorable, // check_violation
		"54000": unstorable, // program_limit_exceeded: an index row that is too large
		"08006": outage,     // connection_failure
		"25006": outage,     // read_only_sql_transaction: a standby
		"40001": outage,     // serialization_failure
		"40P01": outage,     // deadlock_detected
		"53100": outage,     // disk_full
		"53200": outage,     // out_of_memory
		"53300": outage,     // too_many_connections
		"55P03": outage,     // lock_not_available
		"57014": outage,     // query_canceled: statement_timeout
		"57P01": outage,     // admin_shutdown
		"57P03": outage,     // cannot_connect_now: it is starting
		"58030": outage,     // io_error
		"28P01": other,      // invalid_password
		"42P01": other,      // undefined_table: not migrated, or being reset
		"55006": other,      // object_in_use
		"XX000": other,      // internal_error
		"22":    other,      // no SQLSTATE
		"":      other,
	} {
		err := fmt.Errorf("write: %w", sqlError(code))
		require.Equal(t, kind == unstorable, Unstorable(err), code)
		require.Equal(t, kind == outage, Outage(err), code)
		require.False(t, IsPermanent(err), "%s: a store says so with Permanent", code)
		require.True(t, IsPermanent(fmt.Errorf("store: %w", Permanent(err))), code)
	}
	for _, err := range []error{sqlError("57014"), context.DeadlineExceeded} {
		require.True(t, TooSlow(fmt.Errorf("write: %w", err)))
	}
	require.False(t, TooSlow(sqlError("53100")))
	for _, err := range []error{nil, errors.New("connection refused")} {
		require.False(t, Unstorable(err))
		require.False(t, Outage(err))
		require.False(t, IsPermanent(err))
	}
	require.NoError(t, Permanent(nil))
	require.True(t, IsPermanent(fmt.Errorf("read: %w", permanentType{})), "what a sender did wrong stays wrong")
}

// permanentType is an error that says of itself that it is permanent, as event.Error does.
type permanentType struct{}

func (permanentType) Error() string   { return "broken" }
func (permanentType) Permanent() bool { return true }
