package api

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"net/http"
	"strings"
)

// A cursor is base64url of: version, fingerprint of the listing, key of the last item that was given out. It is opaque
// to callers but not secret; what it holds is checked like any other input.
const (
	cursorVersion     = 1
	fingerprintLength = 8
	cursorPrefix      = 1 + fingerprintLength
)

// listing tells one list from another: its name and every filter that shapes it.
type listing [fingerprintLength]byte

func newListing(parts ...string) listing {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return listing(sum[:fingerprintLength])
}

func (l listing) cursor(key []byte) string {
	raw := make([]byte, 0, cursorPrefix+len(key))
	raw = append(raw, cursorVersion)
	raw = append(raw, l[:]...)
	return base64.RawURLEncoding.EncodeToString(append(raw, key...))
}

// key reads a cursor of this listing.
func (l listing) key(cursor string) ([]byte, error) {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(cursor)
	if err != nil || len(raw) <= cursorPrefix || raw[0] != cursorVersion {
		return nil, errCursor("must be a next_cursor that this API has given out")
	}
	if listing(raw[1:cursorPrefix]) != l {
		return nil, errCursor("belongs to another listing; filters must stay as they were on its first page")
	}
	return raw[cursorPrefix:], nil
}

func (l listing) positionCursor(position int64) string {
	return l.cursor(binary.BigEndian.AppendUint64(nil, uint64(position))) //nolint:gosec // positions are positive
}

func (l listing) position(cursor string) (int64, error) {
	key, err := l.key(cursor)
	if err != nil {
		return 0, err
	}
	if len(key) == 8 {
		if position := int64(binary.BigEndian.Uint64(key)); position > 0 { //nolint:gosec // the sign is checked
			return position, nil
		}
	}
	return 0, errCursor("must be a next_cursor that this API has given out")
}

func (l listing) aggregateID(cursor string) (string, error) {
	key, err := l.key(cursor)
	if err != nil {
		return "", err
	}
	if textRule(string(key), maxAggregateID) != "" {
		return "", errCursor("must be a next_cursor that this API has given out")
	}
	return string(key), nil
}

func errCursor(message string) *Problem {
	return mistake(http.StatusUnprocessableEntity, "cursor", message)
}
