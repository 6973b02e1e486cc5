package main

import (
	"context"
	"io"
	"log/slog"

	"github.com/cornjacket/platform-services/internal/app"
	"github.com/cornjacket/platform-services/internal/config"
	"github.com/cornjacket/platform-services/internal/doctor"
	"github.com/cornjacket/platform-services/internal/simulate"
	"github.com/cornjacket/platform-services/routers"
)

// work is what the commands do; tests put their own in its place. Each function returns nil after a clean stop.
type work struct {
	run       func(context.Context, config.Run, *slog.Logger) error
	dev       func(context.Context, config.Dev, io.Writer, *slog.Logger) error
	migrate   func(context.Context, config.Migrate, io.Writer) error
	rebuild   func(context.Context, config.Rebuild, io.Writer, *slog.Logger) error
	republish func(context.Context, config.Republish, io.Writer) error
	simulate  func(context.Context, config.Simulate, io.Writer) error
	routes    func(io.Writer) error
	doctor    func(context.Context, config.Doctor, io.Writer) error
}

// platform returns the work of the real platform.
func platform() work {
	app.Version, _ = stamp()
	return work{run: app.Run, dev: app.Dev, migrate: app.Migrate, rebuild: app.Rebuild, republish: app.Republish, simulate: simulation, routes: routers.Print, doctor: doctor.Run}
}

// simulation publishes what simulated devices would; its result is in what it prints, and in the error.
func simulation(ctx context.Context, c config.Simulate, out io.Writer) error {
	_, err := simulate.Run(ctx, simulate.Config{
		URL: c.URL, Username: c.Username, Password: c.Password,
		Devices: c.Devices, Rate: c.Rate, Duration: c.Duration, Count: c.Count, Prefix: c.Prefix, Inflight: c.Inflight,
		Out: out, Terminal: isTerminal(out), JSON: c.JSON,
	})
	return err
}
