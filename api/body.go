package api

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/cornjacket/platform-services/event"
)

const (
	mediaJSON = "application/json"

	// maxOptionalBody is the size of a body that the framework reads: an event, in base64 or with its quotes escaped.
	maxOptionalBody = 2 * event.MaxBody

	// What a refused request may still send before its connection is cut. Many clients send the whole body before they
	// read the answer; without this they see a reset connection in place of the problem.
	drainBytes = 64 << 20
	drainTime  = 5 * time.Second

	firstRead = 64 << 10 // a caller's word for its length is believed up to here
)

// bodies reads request bodies within a budget of memory that all requests share.
type bodies struct{ budget *semaphore.Weighted }

// read returns the whole body and the weight that it holds of the budget, which the caller must release. On an error
// nothing is held, and what the caller still had to send is out of the way.
func (b *bodies) read(w http.ResponseWriter, r *http.Request, limit int64) (body []byte, held int64, err error) {
	if r.ContentLength > limit {
		err = tooLarge(limit)
	} else {
		body, held, err = b.readAll(r.Body, r.ContentLength, limit)
	}
	var p *Problem
	if errors.As(err, &p) && (p.Status == http.StatusRequestEntityTooLarge || p.Status == http.StatusTooManyRequests) {
		drain(w, r)
	}
	return body, held, err
}

// readBody reads the optional JSON body of a request for the framework, within the budget of its port. What it holds of
// the budget must be released.
func (a *API) readBody(w http.ResponseWriter, r *http.Request) (held int64, err error) {
	media, err := mediaType(r)
	if err == nil && r.Header.Get("Content-Type") != "" && !isJSON(media) && r.ContentLength != 0 {
		err = wrongMedia(mediaJSON)
	}
	if err != nil {
		drain(w, r)
		return 0, err
	}
	body, held, err := a.bodies.read(w, r, maxOptionalBody)
	if err != nil {
		return 0, err
	}
	r.Header.Set("Content-Type", mediaJSON)
	r.Body = io.NopCloser(bytes.NewReader(bytes.TrimSpace(body)))
	return held, nil
}

func (b *bodies) release(held int64) { b.budget.Release(held) }

func (b *bodies) readAll(from io.Reader, length, limit int64) (body []byte, held int64, err error) {
	defer func() {
		if err != nil {
			b.budget.Release(held)
			body, held = nil, 0
		}
	}()
	size := int64(4 << 10)
	if length >= 0 {
		size = min(length+1, firstRead)
	}
	for {
		if int64(len(body)) == held {
			// The budget counts what has arrived, not what was announced: an announcement costs nothing.
			size = next(held, size, length, limit)
			if !b.budget.TryAcquire(size) {
				return body, held, overloaded("too many bytes are being received at once, try again later")
			}
			grown := make([]byte, len(body), size)
			copy(grown, body)
			b.budget.Release(held)
			body, held = grown, size
		}
		n, err := from.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		switch {
		case int64(len(body)) > limit:
			return body, held, tooLarge(limit)
		case errors.Is(err, io.EOF):
			return body, held, nil
		case err != nil:
			return body, held, unreadable(err)
		}
	}
}

// next is the size of the buffer after the one of held bytes. Where the length is known there is room for one byte more,
// so that the end is seen without growing again.
func next(held, first, length, limit int64) int64 {
	if held == 0 {
		return max(first, 512)
	}
	size := min(2*held, limit+1)
	if length > held {
		size = min(size, length+1)
	}
	return size
}

func tooLarge(limit int64) *Problem {
	return mistake(http.StatusRequestEntityTooLarge, "body", fmt.Sprintf("must be at most %d bytes", limit))
}

func unreadable(err error) *Problem {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return mistake(http.StatusRequestTimeout, "body", "did not arrive in time").with("Connection", "close")
	}
	return mistake(http.StatusBadRequest, "body", "breaks off before its end, or is wrongly framed").with("Connection", "close")
}

// drain reads on after a refusal, for a bounded time and length. A client that waits for 100 Continue has sent nothing
// yet and is not asked to.
func drain(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Expect") != "" {
		return
	}
	if http.NewResponseController(w).SetReadDeadline(time.Now().Add(drainTime)) != nil {
		return // without a deadline a slow sender could hold the handler
	}
	_, _ = io.CopyN(io.Discard, r.Body, drainBytes) // an error means that there is no more
}

// mediaType returns the request's media type in lower case, after refusing encodings that are not read here.
func mediaType(r *http.Request) (string, error) {
	if enc := r.Header.Get("Content-Encoding"); enc != "" && !strings.EqualFold(enc, "identity") {
		return "", mistake(http.StatusUnsupportedMediaType, "Content-Encoding", "must be absent or identity").with("Accept-Encoding", "identity")
	}
	given := r.Header.Get("Content-Type")
	if given == mediaJSON {
		return mediaJSON, nil
	}
	media, params, err := mime.ParseMediaType(given)
	if err != nil {
		return "", nil // no type at all, or none that can be read: not one of those accepted
	}
	if charset, ok := params["charset"]; ok && !strings.EqualFold(charset, "utf-8") && !strings.EqualFold(charset, "us-ascii") {
		return "", mistake(http.StatusUnsupportedMediaType, "Content-Type", "must have charset=utf-8 or no charset")
	}
	return media, nil
}

func isJSON(media string) bool {
	return media == mediaJSON || strings.HasPrefix(media, "application/") && strings.HasSuffix(media, "+json")
}

func isLines(media string) bool {
	switch media {
	case "application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonl",
		"application/jsonlines", "application/x-jsonlines", "text/x-ndjson":
		return true
	default:
		return false
	}
}

func wrongMedia(accepted ...string) *Problem {
	list := strings.Join(accepted, ", ")
	return mistake(http.StatusUnsupportedMediaType, "Content-Type", "must be "+strings.Join(accepted, " or ")).with("Accept-Post", list)
}
