package api

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/semaphore"
)

func TestChunkedBodyIsBounded(t *testing.T) {
	t.Parallel()
	m := &memory{}
	url := ingestionServer(t, m) + eventPath
	big := io.MultiReader(strings.NewReader(`{"payload":"`), bytes.NewReader(bytes.Repeat([]byte("x"), 3<<20)), strings.NewReader(`"}`))
	p := call(t, http.MethodPost, url, big, "Content-Type", mediaJSON).problem(t, 413)
	require.Equal(t, "body", p.Errors[0].Location)
	res := call(t, http.MethodPost, url, io.MultiReader(strings.NewReader(reading)), "Content-Type", mediaJSON)
	require.Equal(t, 202, res.status, "%s", res.body)
}

func TestClientThatWaitsFor100ContinueIsNotAskedForTooMuch(t *testing.T) {
	t.Parallel()
	addr := strings.TrimPrefix(ingestionServer(t, &memory{}), "http://")
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	require.NoError(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	_, err = io.WriteString(conn, "POST /api/v1/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"+
		"Content-Length: 5000000\r\nExpect: 100-continue\r\n\r\n")
	require.NoError(t, err)
	line, err := bufio.NewReader(conn).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "HTTP/1.1 413 Request Entity Too Large\r\n", line)
}

func TestClientBreaksOff(t *testing.T) {
	t.Parallel()
	log := &logged{}
	m := &memory{}
	addr := strings.TrimPrefix(serve(t, NewIngestion(IngestionConfig{Ingester: m, Log: slog.New(slog.NewTextHandler(log, nil))})), "http://")
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	require.NoError(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	_, err = io.WriteString(conn, "POST /api/v1/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{")
	require.NoError(t, err)
	require.NoError(t, conn.(*net.TCPConn).CloseWrite())
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	defer func() { _ = res.Body.Close() }()
	require.Equal(t, http.StatusBadRequest, res.StatusCode)
	require.Empty(t, log.String())
	require.Empty(t, m.stored())
}

func TestBodiesShareABudget(t *testing.T) {
	t.Parallel()
	b := &bodies{semaphore.NewWeighted(64 << 10)}
	request := func(body string, announce bool) (*httptest.ResponseRecorder, *http.Request) {
		r := httptest.NewRequest(http.MethodPost, "/", io.MultiReader(strings.NewReader(body)))
		if announce {
			r.ContentLength = int64(len(body))
		}
		return httptest.NewRecorder(), r
	}
	for _, announce := range []bool{true, false} {
		body := strings.Repeat("x", 30<<10)
		w, r := request(body, announce)
		got, held, err := b.read(w, r, 60<<10)
		require.NoError(t, err)
		require.Equal(t, body, string(got))
		require.GreaterOrEqual(t, held, int64(len(body)))

		w, r = request(strings.Repeat("y", 50<<10), announce)
		_, _, err = b.read(w, r, 60<<10)
		var p *Problem
		require.ErrorAs(t, err, &p)
		require.Equal(t, http.StatusTooManyRequests, p.Status)

		b.release(held)
		require.True(t, b.budget.TryAcquire(64<<10), "everything has been given back")
		b.release(64 << 10)
	}
	w, r := request(strings.Repeat("z", 61<<10), false)
	_, _, err := b.read(w, r, 60<<10)
	var p *Problem
	require.ErrorAs(t, err, &p)
	require.Contains(t, []int{413, 429}, p.Status)
	require.True(t, b.budget.TryAcquire(64<<10))
}

func TestClientThatReadsOnlyAfterItHasSentAllSeesTheAnswer(t *testing.T) {
	t.Parallel()
	addr := strings.TrimPrefix(ingestionServer(t, &memory{}), "http://")
	for _, contentType := range []string{mediaJSON, "text/plain"} {
		conn, err := net.Dial("tcp", addr)
		require.NoError(t, err)
		require.NoError(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
		const length = 20 << 20 // more than what socket buffers hold
		_, err = fmt.Fprintf(conn, "POST /api/v1/events HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n", contentType, length)
		require.NoError(t, err)
		_, err = conn.Write(bytes.Repeat([]byte("x"), length))
		require.NoError(t, err)
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		require.NoError(t, err)
		require.Equal(t, contentType == mediaJSON, res.StatusCode == 413)
		require.Equal(t, contentType != mediaJSON, res.StatusCode == 415)
		require.NoError(t, res.Body.Close())
		require.NoError(t, conn.Close())
	}
}
