package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

const (
	letter1 = "11111111-1111-4111-8111-111111111111"
	letter2 = "22222222-2222-4222-8222-222222222222"
	letter3 = "33333333-3333-4333-8333-333333333333"
)

// letterService answers as a service with dead letters does.
type letterService struct {
	addr string

	mu      sync.Mutex
	letters []map[string]any // the newest first
	asked   []string         // method, path and query
	bodies  []string
	auth    string
	polls   int
}

func serveLetters(t *testing.T, letters ...map[string]any) *letterService {
	t.Helper()
	s := &letterService{letters: letters}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	s.addr = server.Listener.Addr().String()
	return s
}

func deadLetter(id, consumer, failedAt string) map[string]any {
	return map[string]any{
		"dlq_id": id, "consumer": consumer, "status": "pending", "event_id": nil, "error_message": "refused <b>\nstack", "failed_at": failedAt,
		"retry_count": 1, "source_topic": "sensor-events", "event_payload": `{"a":1}`, "payload_encoding": "json", "payload_bytes": 7,
	}
}

func (s *letterService) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	s.asked = append(s.asked, r.Method+" "+r.URL.RequestURI())
	s.bodies = append(s.bodies, string(body))
	s.auth = r.Header.Get("Authorization")
	status, answer := s.answer(r, string(body))
	w.WriteHeader(status)
	data, err := json.Marshal(answer)
	if err != nil {
		panic(err) // a test's own mistake
	}
	_, _ = w.Write(data)
}

func (s *letterService) answer(r *http.Request, body string) (int, any) {
	path := strings.Trim(strings.TrimPrefix(r.URL.Path, "/api/v1/dlq"), "/")
	id, verb, _ := strings.Cut(path, "/")
	switch {
	case path == "":
		page := map[string]any{"items": s.letters}
		if r.URL.Query().Get("limit") == "1" {
			page = map[string]any{"items": s.letters[:1], "next_cursor": "x"}
		}
		return 200, page
	case path == "replay" && strings.Contains(body, `"dry_run":true`):
		return 200, map[string]any{"dry_run": true, "matched": len(s.letters)}
	case path == "replay":
		return 202, map[string]any{"replay_id": letter3, "status": "queued", "total": 2, "remaining": 2}
	case id == "replays":
		if s.polls++; s.polls < 3 {
			return 200, map[string]any{"replay_id": letter3, "status": "running", "total": 2, "remaining": 1, "replayed": 1}
		}
		return 200, map[string]any{"replay_id": letter3, "status": "done", "total": 2, "replayed": 1, "failed": 1, "last_error": "still bad"}
	}
	for _, l := range s.letters {
		if l["dlq_id"] != id {
			continue
		}
		if verb == "" {
			return 200, l
		}
		if l["status"] != "pending" {
			return 409, map[string]any{"detail": "dead letter is not pending"}
		}
		l["status"] = verb + "ed"
		return 200, l
	}
	return 404, map[string]any{"detail": "no such letter"}
}

// both names the two services of [of]: others may serve dead letters too.
const both = "--services=ingestion,eventhandler"

// of returns the variables that name two services.
func of(ingestion, eventhandler *letterService) map[string]string {
	return map[string]string{"INGESTION_ADDR": ingestion.addr, "EVENTHANDLER_HEALTH_ADDR": eventhandler.addr}
}

func TestDLQListMergesServices(t *testing.T) {
	t.Parallel()
	in := serveLetters(t, deadLetter(letter1, "ingestion", "2026-02-07T10:00:01Z"))
	handler := serveLetters(t, deadLetter(letter2, "eventhandler", "2026-02-07T10:00:02Z"), deadLetter(letter3, "eventhandler", "2026-02-07T10:00:00Z"))
	env := of(in, handler)
	env["API_TOKEN"] = "secret"
	code, stdout, stderr := call(t, work{}, env, "dlq", "list", both, "--error=b&c", "--topic", "a b")
	require.Equal(t, exitOK, code, stderr)
	lines := strings.Split(strings.TrimSpace(stdout), "\n")
	require.Len(t, lines, 4)
	for i, id := range []string{letter2, letter1, letter3} {
		require.True(t, strings.HasPrefix(lines[i+1], id), "the newest first: %s", stdout)
	}
	require.Contains(t, stdout, "refused <b>…")
	require.NotContains(t, stdout, "stack")
	require.Equal(t, "GET /api/v1/dlq?error=b%26c&limit=50&status=pending&topic=a+b", in.asked[0])
	require.Equal(t, "Bearer secret", in.auth)

	code, stdout, _ = call(t, work{}, of(in, handler), "dlq", "list", both, "--json", "--status=all", "--consumer=relay")
	require.Equal(t, exitOK, code)
	require.Equal(t, 1, strings.Count(stdout, "\n"), "only ingestion has letters of the relay")
	require.Contains(t, stdout, `"error_message":"refused`)
	require.Equal(t, "GET /api/v1/dlq?consumer=relay&limit=50", in.asked[1])
	require.Empty(t, in.auth)

	code, stdout, stderr = call(t, work{}, of(in, handler), "dlq", "list", both, "--limit=1")
	require.Equal(t, exitOK, code)
	require.Contains(t, stdout, letter2)
	require.NotContains(t, stdout, letter1)
	require.Contains(t, stderr, "there are more")

	// Letters of services that answer are shown, and those that do not are an error.
	gone := &letterService{addr: "127.0.0.1:1"}
	code, stdout, stderr = call(t, work{}, of(in, gone), "dlq", "list", both)
	require.Equal(t, exitError, code)
	require.Contains(t, stdout, letter1)
	require.Contains(t, stderr, "eventhandler (127.0.0.1:1) does not answer")
}

func TestDLQShow(t *testing.T) {
	t.Parallel()
	in, handler := serveLetters(t), serveLetters(t, deadLetter(letter2, "eventhandler", "2026-02-07T10:00:02Z"))
	code, stdout, stderr := call(t, work{}, of(in, handler), "dlq", "show", both, letter2)
	require.Equal(t, exitOK, code, stderr)
	require.Contains(t, stdout, "event_payload:\n{\"a\":1}\n")
	code, stdout, stderr = call(t, work{}, of(in, handler), "dlq", "show", both, "--json", letter2, letter3)
	require.Equal(t, exitError, code)
	require.Contains(t, stdout, `"dlq_id":"`+letter2)
	require.Equal(t, "platform: there is no dead letter "+letter3+"\n", stderr)
}

func TestDLQReplayOne(t *testing.T) {
	t.Parallel()
	in, handler := serveLetters(t), serveLetters(t, deadLetter(letter2, "eventhandler", "2026-02-07T10:00:02Z"))
	env := of(in, handler)
	code, stdout, _ := call(t, work{}, env, "dlq", "replay", both, "--dry-run", letter2)
	require.Equal(t, exitOK, code)
	require.Contains(t, stdout, "would be replayed")
	file := filepath.Join(t.TempDir(), "payload")
	require.NoError(t, os.WriteFile(file, []byte{0xff, 'a'}, 0o600))
	code, stdout, stderr := call(t, work{}, env, "dlq", "replay", both, letter2, "--payload-file", file, "--as-topic=events")
	require.Equal(t, exitOK, code, stderr)
	require.Contains(t, stdout, letter2+"  eventhandler  replayed")
	require.JSONEq(t, `{"payload":"/2E=","encoding":"base64","topic":"events"}`, handler.bodies[len(handler.bodies)-1])
	code, _, stderr = call(t, work{}, env, "dlq", "replay", both, letter2)
	require.Equal(t, exitError, code)
	require.Contains(t, stderr, "eventhandler answered 409: dead letter is not pending")
	code, _, stderr = call(t, work{}, env, "dlq", "replay", both, letter2, "--payload-file=/nowhere")
	require.Equal(t, exitError, code)
	require.Contains(t, stderr, "/nowhere")
}

func TestDLQReplayAll(t *testing.T) {
	t.Parallel()
	in := serveLetters(t)
	handler := serveLetters(t, deadLetter(letter1, "eventhandler", "2026-02-07T10:00:02Z"), deadLetter(letter2, "eventhandler", "2026-02-07T10:00:01Z"))
	code, stdout, _ := call(t, work{}, of(in, handler), "dlq", "replay", both, "--all", "--dry-run")
	require.Equal(t, exitOK, code)
	require.Equal(t, "ingestion: 0 would be replayed\neventhandler: 2 would be replayed\n", stdout)

	code, stdout, stderr := call(t, work{}, of(in, handler), "dlq", "replay", both, "--all", "--rate=5", "--consumer=eventhandler")
	require.Equal(t, exitError, code, "one was refused")
	require.Equal(t, "eventhandler: 1 replayed, 1 refused again, 0 not pending any more\n", stdout)
	require.Contains(t, stderr, "still bad")
	require.JSONEq(t, `{"consumer":"eventhandler","rate":5,"dry_run":false}`, handler.bodies[1])

	code, stdout, _ = call(t, work{}, of(in, handler), "dlq", "replay", "--all", "--services=eventhandler", "--json")
	require.Equal(t, exitError, code)
	require.Contains(t, stdout, `"service":"eventhandler"`)
	code, stdout, _ = call(t, work{}, of(in, handler), "dlq", "replay", "--all", "--services=eventhandler", "--no-wait")
	require.Equal(t, exitOK, code)
	require.Contains(t, stdout, "bulk replay "+letter3+" of 2 has begun")
}

func TestDLQDiscard(t *testing.T) {
	t.Parallel()
	in := serveLetters(t)
	handler := serveLetters(t, deadLetter(letter1, "eventhandler", "2026-02-07T10:00:02Z"), deadLetter(letter2, "eventhandler", "2026-02-07T10:00:01Z"))
	env := of(in, handler)
	code, stdout, _ := call(t, work{}, env, "dlq", "discard", both, "--all", "--dry-run")
	require.Equal(t, exitOK, code)
	require.Contains(t, stdout, "2 of 2 would be discarded\n")
	code, _, stderr := call(t, work{}, env, "dlq", "discard", both, letter1, "--reason", "old")
	require.Equal(t, exitOK, code, stderr)
	require.JSONEq(t, `{"reason":"old"}`, handler.bodies[len(handler.bodies)-1])
	code, stdout, stderr = call(t, work{}, env, "dlq", "discard", both, "--all")
	require.Equal(t, exitError, code, "one is not pending: this service ignores the filter")
	require.Contains(t, stdout, "1 of 2 discarded\n")
	require.Contains(t, stderr, "409")
}

func TestDLQUsage(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{}, {"replay"}, {"show"}, {"list", "--status=new"}, {"replay", "17"}, {"nothing"}, {"list", "--services=query"}} {
		code, _, stderr := call(t, work{}, nil, append([]string{"dlq"}, args...)...)
		require.Equal(t, exitUsage, code, fmt.Sprint(args))
		require.Equal(t, 1, strings.Count(stderr, "\n"), stderr)
	}
}
