package devstack

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
)

func TestKafkaSurvivesKill(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	dir := filepath.Join(base, "kafka")
	cmd := startChild(t, "kafka", dir)
	require.Eventually(t, func() bool {
		_, err := os.Stat(filepath.Join(base, "done"))
		return err == nil
	}, soon, 10*time.Millisecond)
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait() // it was killed

	k, err := StartKafka(KafkaConfig{Addr: "127.0.0.1:0", Dir: dir, Topics: []string{"t", "new"}, Partitions: 3})
	require.NoError(t, err)
	defer k.Close()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	all, err := kgo.NewClient(kgo.SeedBrokers(k.Addr()), kgo.ConsumeTopics("t"),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	require.NoError(t, err)
	defer all.Close()
	requireRecords(ctx, t, all, 0)
	group, err := kgo.NewClient(kgo.SeedBrokers(k.Addr()), kgo.ConsumeTopics("t"), kgo.ConsumerGroup("g"))
	require.NoError(t, err)
	defer group.Close()
	requireRecords(ctx, t, group, kafkaRecords/2) // the group goes on where it had committed
	require.NoError(t, all.ProduceSync(ctx, &kgo.Record{Topic: "new", Value: []byte("x")}).FirstErr())
}

func requireRecords(ctx context.Context, t *testing.T, client *kgo.Client, from int) {
	t.Helper()
	for next := from; next < kafkaRecords; {
		fetches := client.PollFetches(ctx)
		require.NoError(t, fetches.Err())
		for _, r := range fetches.Records() {
			require.Equal(t, strconv.Itoa(next), string(r.Value))
			next++
		}
	}
}

func TestKafkaOnTakenPort(t *testing.T) {
	t.Parallel()
	k, err := StartKafka(KafkaConfig{Addr: "127.0.0.1:0"})
	require.NoError(t, err)
	defer k.Close()
	_, err = StartKafka(KafkaConfig{Addr: k.Addr()})
	require.ErrorContains(t, err, k.Addr())
}

func TestCheckPorts(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	taken := ln.Addr().String()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, free.Close())
	err = CheckPorts([]Service{
		{"ingestion", "127.0.0.1:0"}, {"query API", taken}, {"actions", free.Addr().String()},
		{"relay", free.Addr().String()}, {"tsdb", "nonsense"},
	})
	require.Error(t, err)
	lines := strings.Split(err.Error(), "\n")
	require.Len(t, lines, 3)
	require.Equal(t, "query API: listen on "+taken+": bind: address already in use", lines[0])
	require.Contains(t, lines[1], "relay: listen on "+free.Addr().String()+": the actions has the same address")
	require.Contains(t, lines[2], "tsdb: listen on nonsense: ")
	require.NoError(t, ln.Close())
	require.NoError(t, CheckPorts([]Service{{"query API", taken}}), "nothing may be left listening")
}

func TestFolderIsLocked(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	lock, err := LockFolder(dir)
	require.NoError(t, err)
	_, err = LockFolder(dir)
	require.ErrorIs(t, err, ErrLocked)
	require.ErrorContains(t, err, dir)
	require.ErrorContains(t, err, "process "+strconv.Itoa(os.Getpid()))
	require.ErrorIs(t, Wipe(dir), ErrLocked)
	require.NoError(t, lock.Close())
	lock, err = LockFolder(dir)
	require.NoError(t, err)
	require.NoError(t, lock.Close())
}

func TestWipe(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(openDir(t), "data[1]*")
	require.NoError(t, Wipe(dir), "nothing there")
	require.NoDirExists(t, dir)

	foreign := t.TempDir()
	precious := filepath.Join(foreign, "precious")
	require.NoError(t, os.WriteFile(precious, nil, 0o600))
	require.ErrorContains(t, Wipe(foreign), "not a data folder")
	_, err := LockFolder(foreign)
	require.ErrorContains(t, err, "not a data folder")
	require.FileExists(t, precious)

	lock, err := LockFolder(dir)
	require.NoError(t, err)
	pg := start(t, testConfig(filepath.Join(dir, "postgres")))
	stop(t, pg)
	link := filepath.Join(dir, "link")
	require.NoError(t, os.Symlink(foreign, link))
	require.NoError(t, lock.Close())
	require.NoError(t, Wipe(dir))
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, left, 2, "only the marker and the lock may stay")
	require.FileExists(t, precious, "what a link points to is not in the folder")
	lock, err = LockFolder(dir)
	require.NoError(t, err)
	require.NoError(t, lock.Close())
}

func TestNewer(t *testing.T) {
	t.Parallel()
	for _, pair := range [][2]string{{"15.10", "15.9"}, {"16.0", "15.13"}, {"10.1", "9.6.24"}, {"15.1.1", "15.1"}} {
		require.True(t, newer(pair[0], pair[1]), pair)
		require.False(t, newer(pair[1], pair[0]), pair)
	}
}
