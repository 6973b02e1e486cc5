package routers_test

import (
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cornjacket/platform-services/internal/pgtest"
)

func TestMain(m *testing.M) {
	if cfg := os.Getenv(memberEnv); cfg != "" {
		if err := memberMain(cfg); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m, pgtest.IgnoreServer(),
		// sarama's metrics, once a process has had a client
		goleak.IgnoreAnyFunction("github.com/rcrowley/go-metrics.(*meterArbiter).tick"))
}

const (
	soon  = 30 * time.Second
	every = 20 * time.Millisecond
)

var quiet = slog.New(slog.DiscardHandler)
