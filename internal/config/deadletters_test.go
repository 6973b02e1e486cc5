package config_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cornjacket/platform-services/internal/config"
	"github.com/cornjacket/platform-services/routers"
)

const someID = "0190a5c0-7b1e-7c3a-9d3e-5f6a7b8c9d0e"

func TestDLQSettings(t *testing.T) {
	t.Parallel()
	g, err := parse(t, map[string]string{"API_TOKEN": "secret", "EVENTHANDLER_HEALTH_ADDR": "127.0.0.1:1"}, "dlq", "list")
	require.NoError(t, err)
	require.Equal(t, "pending", g.DLQ.List.Status)
	require.Equal(t, 50, g.DLQ.List.Limit)
	require.Equal(t, routers.DeadLetterServices(), g.DLQ.List.Services)
	require.Equal(t, "secret", g.DLQ.List.APIToken)
	require.Equal(t, time.Minute, g.DLQ.List.Timeout)
	require.Equal(t, "127.0.0.1:1", g.DLQ.List.Of(routers.Eventhandler))

	g, err = parse(t, nil, "dlq", "replay", "--all", "--consumer=Relay", "--event-id="+someID, "--from=2026-02-07T11:00:00+01:00", "--rate=0.5", "--dry-run")
	require.NoError(t, err)
	require.Equal(t, config.DLQFilter{Consumer: "relay", EventID: someID, From: "2026-02-07T10:00:00Z"}, g.DLQ.Replay.DLQFilter)
	require.InDelta(t, 0.5, g.DLQ.Replay.Rate, 0)
	require.True(t, g.DLQ.Replay.DryRun)

	g, err = parse(t, nil, "dlq", "discard", someID, someID, "-m", "old")
	require.NoError(t, err)
	require.Len(t, g.DLQ.Discard.IDs, 2)
	require.Equal(t, "old", g.DLQ.Discard.Reason)
}

func TestDLQSettingsThatDoNotGoTogether(t *testing.T) {
	t.Parallel()
	for want, args := range map[string][]string{
		"<id>: must be given, or --all":                             {"replay"},
		"--all: does not go with IDs":                               {"discard", "--all", someID},
		"--all: must be given with filters":                         {"replay", "--error=x", someID},
		`<id>: "17" is not a UUID`:                                  {"show", "17"},
		"--payload-file: is for one letter, named by its ID":        {"replay", "--all", "--payload-file=x"},
		"--as-topic: is for one letter":                             {"replay", someID, someID, "--as-topic=events"},
		"--rate: is out of range":                                   {"replay", "--all", "--rate=0"},
		`--consumer: "query" is not a consumer; takes ingestion,`:   {"list", "--consumer=query"},
		`--event-id: "x" is not a UUID`:                             {"list", "--event-id=x"},
		`--from: "now" is not a time; takes an RFC 3339 time`:       {"list", "--from=now"},
		`--status: "new" is not one of them; takes pending, replay`: {"list", "--status=new"},
	} {
		_, err := parse(t, nil, append([]string{"dlq"}, args...)...)
		require.ErrorContains(t, err, want)
	}
}
