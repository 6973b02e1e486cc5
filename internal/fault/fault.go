// Package fault sorts errors into kinds, for all routers and stores.
package fault

import (
	"context"
	"errors"
	"fmt"
)

// What becomes of a message that failed is decided here, for all routers and stores:
//
//   - An error that [IsPermanent] says no retry mends: the message becomes a dead letter at once. What a database refused
//     is one if it is [Unstorable].
//   - Any other error means that something of ours is away, busy or full: it is tried again until it succeeds, health
//     turns red, and nothing becomes a dead letter. Readers, which can't wait, are told so if it is an [Outage].
//   - A panic, which is a bug, is retried a few times (package routers).

// Permanent marks an error as one that no retry mends: the message that caused it becomes a dead letter. It returns
// nil for nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return permanentError{err}
}

// IsPermanent reports whether err, or an error that it wraps, was marked as permanent.
func IsPermanent(err error) bool {
	var p interface{ Permanent() bool }
	return errors.As(err, &p) && p.Permanent()
}

type permanentError struct{ err error }

func (e permanentError) Error() string   { return e.err.Error() }
func (e permanentError) Unwrap() error   { return e.err }
func (e permanentError) Permanent() bool { return true }

// Unstorable reports whether a database refused a value rather than failed: SQLSTATE classes 22 (data exception),
// 23 (constraint) and 54 (program limit). Source: https://www.postgresql.org/docs/current/errcodes-appendix.html
func Unstorable(err error) bool {
	switch class, _ := sqlState(err); class {
	case "22", "23", "54":
		return true
	}
	return false
}

// Outage reports whether a database said that it can't do now what it could do at another time: SQLSTATE classes 08
// (connection), 40 (rolled back, as after a deadlock), 53 (resources, such as disk space), 57 (operator intervention,
// also a statement_timeout) and 58 (system), 25006 (a standby that is not yet promoted) and 55P03 (a lock_timeout).
func Outage(err error) bool {
	switch class, code := sqlState(err); class {
	case "08", "40", "53", "57", "58":
		return true
	default:
		return code == "25006" || code == "55P03"
	}
}

// TooSlow reports whether a database was given less time than it would have taken, by a deadline of ours or its own
// statement_timeout: with less to do at once it may succeed.
func TooSlow(err error) bool {
	_, code := sqlState(err)
	return code == "57014" || errors.Is(err, context.DeadlineExceeded)
}

// sqlState returns the class and the whole of the SQLSTATE of an error; both are empty if it has none.
func sqlState(err error) (class, code string) {
	var sql interface{ SQLState() string }
	if !errors.As(err, &sql) || len(sql.SQLState()) != 5 {
		return "", ""
	}
	return sql.SQLState()[:2], sql.SQLState()
}

// Sentinels of everything that reads for callers that can't wait.
var (
	// ErrNotFound says that there is no such thing.
	ErrNotFound = errors.New("not found")
	// ErrUnavailable says that what was asked for can't be read or written now; trying again later may help.
	ErrUnavailable = errors.New("unavailable")
	// ErrOverloaded says that too much is waiting already; trying again later will help.
	ErrOverloaded = errors.New("overloaded")
)

// Refused marks what a database said as permanent if it refused a value: see [Unstorable].
func Refused(err error) error {
	if Unstorable(err) {
		return Permanent(err)
	}
	return err
}

// Unmatchable reports whether the database refused an argument of a query as one that no column can hold, such as a NUL
// in a text or a time beyond its range. Nothing that is stored can match it.
func Unmatchable(err error) bool {
	switch _, code := sqlState(err); code {
	case "22021", "22P05", "22008": // character_not_in_repertoire, untranslatable_character, datetime_field_overflow
		return true
	}
	return false
}

// Unavailable wraps an error of the connection, an outage or a timeout in [ErrUnavailable]; other errors of a database
// are returned as they are.
func Unavailable(err error) error {
	if _, code := sqlState(err); code != "" && !Outage(err) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}
