package app

import (
	"context"
	"fmt"
	"io"

	"github.com/cornjacket/platform-services/internal/config"
	"github.com/cornjacket/platform-services/pubsub/outbox"
	"github.com/cornjacket/platform-services/routers"
	"github.com/cornjacket/platform-services/store"
)

// Republish has the relay publish again from a position of the log on.
func Republish(ctx context.Context, cfg config.Republish, out io.Writer) error {
	variable := routers.ServiceOf(routers.Relay).Database.Variable
	pool, err := store.Open(ctx, store.PoolConfig{URL: cfg.DatabaseOf(routers.Relay), Name: "republish"})
	if err != nil {
		return fmt.Errorf("%s: %w", variable, err)
	}
	defer pool.Close()
	if err := await(ctx, pool, variable, cfg.StartupTimeout); err != nil {
		return err
	}
	events, leads, err := outbox.Republish(ctx, pool, cfg.From)
	if err != nil {
		return fmt.Errorf("republish: %w", err)
	}
	when := "now"
	if !leads {
		when = "when a relay is started"
	}
	if _, err := fmt.Fprintf(out, "%d events, from position %d on, are published again %s; consumers skip what they have\n", events, cfg.From, when); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}
