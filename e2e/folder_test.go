package e2e

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// What was stored is there after a restart, on the bus and in the tables, and positions go on where they were.
func TestDataSurvivesARestart(t *testing.T) {
	t.Parallel()
	own(t)
	p := dev(t, newFolder(t))
	device := unique("survivor")
	first := p.send(t, reading(newID(), device, "2026-02-07T10:00:00Z", 1))
	before := p.projected(t, "sensor_state", device, p.event(t, first).Metadata.Position)
	p.stop(t)

	p = dev(t, p.dir)
	e := p.event(t, first)
	require.Equal(t, before, p.projected(t, "sensor_state", device, e.Metadata.Position))
	second := p.send(t, reading(newID(), device, "2026-02-07T10:00:01Z", 2))
	require.Greater(t, p.event(t, second).Metadata.Position, e.Metadata.Position)
	require.Equal(t, second, p.projected(t, "sensor_state", device, e.Metadata.Position+1).LastEventID)

	t.Run("the folder is taken", func(t *testing.T) {
		for _, args := range [][]string{nil, {"--fresh"}} {
			c := platformCommand(t, nil, devArgs(p.dir, args...)...)
			require.Equal(t, 1, c.code)
			line := c.oneLine(t)
			require.Contains(t, line, p.dir)
			require.Contains(t, line, "in use by process")
		}
		p.arrives(t)
	})
	p.stop(t)

	t.Run("fresh", func(t *testing.T) {
		p := dev(t, p.dir, "--fresh")
		for _, id := range []string{first, second} {
			status, err := p.get(t.Context(), eventsPath+"/"+id, &storedEvent{})
			require.NoError(t, err)
			require.Equal(t, http.StatusNotFound, status)
		}
		var page struct{ Items []projection }
		status, err := p.get(t.Context(), "/api/v1/projections/sensor_state", &page)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, status)
		require.Empty(t, page.Items)
		// The same event again: it must not be taken for a repetition, by the bus or its consumers either.
		p.send(t, reading(first, device, "2026-02-07T09:00:00Z", 3))
		require.JSONEq(t, `{"value":3,"unit":"celsius"}`, string(p.projected(t, "sensor_state", device, 1).State))
		p.stop(t)
	})
}

// A folder that is somebody else's is not touched, least of all by --fresh.
func TestForeignFolderIsNotTouched(t *testing.T) {
	t.Parallel()
	own(t)
	dir := newFolder(t)
	precious := filepath.Join(dir, "thesis.txt")
	require.NoError(t, os.WriteFile(precious, []byte("chapter 1"), 0o600))
	for _, args := range [][]string{nil, {"--fresh"}} {
		c := platformCommand(t, nil, devArgs(dir, args...)...)
		require.Equal(t, 1, c.code)
		require.Contains(t, c.oneLine(t), dir)
	}
	text, err := os.ReadFile(precious)
	require.NoError(t, err)
	require.Equal(t, "chapter 1", string(text))

	file := filepath.Join(newFolder(t), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	c := platformCommand(t, nil, devArgs(file)...)
	require.Equal(t, 1, c.code)
	require.Contains(t, c.oneLine(t), file)
}

// The platform needs no rights beyond its folder.
func TestOrdinaryUser(t *testing.T) {
	t.Parallel()
	own(t)
	if os.Getuid() != 0 {
		t.Skip("this is an ordinary user: all the other tests show it")
	}
	setpriv := needTool(t, "setpriv")
	home := newFolder(t)
	require.NoError(t, os.Chmod(home, 0o777))
	dir := filepath.Join(home, ".local", "state", "cornjacket") // by default
	args := append([]string{"--reuid=nobody", "--regid=nogroup", "--clear-groups", "--", binary}, devArgs(dir)...)
	proc, err := launch([]string{"HOME=" + home}, setpriv, args...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, proc.kill()) })
	p := &platform{dir: dir, process: proc}
	require.NoError(t, p.awaitReady(t.Context(), "PostgreSQL "))
	p.arrives(t)
	p.stop(t)
	log, err := os.ReadFile(filepath.Join(dir, "postgres", "postgres.log"))
	require.NoError(t, err)
	require.Contains(t, string(log), "database system is shut down")

	readOnly := newFolder(t)
	args[len(args)-len(devArgs(dir))+2] = filepath.Join(readOnly, "data")
	proc, err = launch([]string{"HOME=" + home}, setpriv, args...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, proc.kill()) })
	code, err := proc.ended(wait)
	require.NoError(t, err)
	require.Equal(t, 1, code)
	line := proc.oneLine(t)
	require.Contains(t, line, readOnly)
	require.Contains(t, strings.ToLower(line), "permission denied")
}
