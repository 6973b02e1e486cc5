package event

import "errors"

// Permanent marks an error as one that no retry mends: the message that caused it becomes a dead letter. It returns
// nil for nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return permanentError{err}
}

// IsPermanent tells whether err, or an error that it wraps, was marked as permanent.
func IsPermanent(err error) bool {
	var p interface{ Permanent() bool }
	return errors.As(err, &p) && p.Permanent()
}

type permanentError struct{ err error }

func (e permanentError) Error() string   { return e.err.Error() }
func (e permanentError) Unwrap() error   { return e.err }
func (e permanentError) Permanent() bool { return true }

// Unstorable tells whether a database refused a value rather than failed: SQLSTATE classes 22 (data exception),
// 23 (constraint) and 54 (program limit). Source: https://www.postgresql.org/docs/current/errcodes-appendix.html
func Unstorable(err error) bool {
	var sql interface{ SQLState() string }
	if !errors.As(err, &sql) || len(sql.SQLState()) != 5 {
		return false
	}
	switch sql.SQLState()[:2] {
	case "22", "23", "54":
		return true
	}
	return false
}
