package api

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
)

// Page is a list with a cursor to its continuation.
type Page[T any] struct {
	Items []T    `json:"items"`
	Next  string `json:"next_cursor,omitempty" doc:"Gives the next page as cursor. Absent on the last page."`
}

// pageOf returns up to limit items; that there are more of them means that there is a next page.
func pageOf[T any](items []T, limit int, cursor func(last *T) string) Page[T] {
	if len(items) <= limit {
		return Page[T]{Items: items}
	}
	return Page[T]{Items: items[:limit], Next: cursor(&items[limit-1])}
}

// A cursor is base64url of: version, fingerprint of the listing, key of the last item that was given out, in
// JSON. It is opaque to callers but not secret.
const (
	cursorVersion     = 2
	fingerprintLength = 8
	cursorPrefix      = 1 + fingerprintLength
)

// listing tells one list from another: its name and every filter that shapes it.
type listing [fingerprintLength]byte

func newListing(parts ...string) listing {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return listing(sum[:fingerprintLength])
}

// cursor returns the cursor for what comes after an item; key is what its place in the list is known by.
func (l listing) cursor(key any) string {
	data, err := json.Marshal(key)
	if err != nil { // numbers, texts and times: a bug
		panic(fmt.Errorf("encode cursor: %w", err))
	}
	return base64.RawURLEncoding.EncodeToString(slices.Concat([]byte{cursorVersion}, l[:], data))
}

// after reads a cursor of this listing; without one key stays as it is, and the list starts at its first item. A key
// that was made up selects other items, and nothing that the caller could not ask for.
func (l listing) after(cursor string, key any) error {
	if cursor == "" {
		return nil
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(cursor)
	if err != nil || len(raw) <= cursorPrefix || raw[0] != cursorVersion {
		return errCursor("must be a next_cursor that this API has given out")
	}
	if listing(raw[1:cursorPrefix]) != l {
		return errCursor("belongs to another listing; filters must stay as they were on its first page")
	}
	if json.Unmarshal(raw[cursorPrefix:], key) != nil || l.cursor(key) != cursor {
		return errCursor("must be a next_cursor that this API has given out")
	}
	return nil
}

func errCursor(message string) *Problem {
	return mistake(http.StatusUnprocessableEntity, "cursor", message)
}
