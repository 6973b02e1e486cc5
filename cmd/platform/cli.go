package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/alecthomas/kong"

	"github.com/cornjacket/platform-services/internal/config"
)

// cli is the grammar of the command line.
type cli struct {
	Run       config.Run       `cmd:"" help:"Run the platform, or some of its services."`
	Dev       config.Dev       `cmd:"" help:"Run the whole platform with an embedded Postgres, Kafka API broker and MQTT broker; needs no containers."`
	Migrate   config.Migrate   `cmd:"" help:"Bring the databases up to date, show their state, or reset them."`
	Rebuild   config.Rebuild   `cmd:"" help:"Build a projection anew from the event log, beside the one in use and while events flow."`
	Republish config.Republish `cmd:"" help:"Publish events of the log again, from a position on, after the bus has lost them; consumers skip what they have."`
	Simulate  config.Simulate  `cmd:"" help:"Publish readings of simulated devices over MQTT."`
	Routes    struct{}         `cmd:"" help:"Print the table of routers: what flows from where to where."`
	Health    config.Health    `cmd:"" help:"Ask services for their health; exit code 1 unless all are ok."`
	DLQ       config.DLQ       `cmd:"" name:"dlq" help:"List, show, replay and discard dead letters: what a consumer could not handle."`
	Doctor    config.Doctor    `cmd:"" help:"Check databases, bus, MQTT broker, services and ledger from outside; says what to do, exit code 1 if anything fails."`
	Token     config.Token     `cmd:"" help:"Make a bearer token for the HTTP APIs, and its entry for API_TOKENS."`
	Version   struct{}         `cmd:"" help:"Print the version."`
}

const (
	description = "Cornjacket platform services: takes events of devices and clients over MQTT and HTTP, keeps them, and projects their current state."
	exitCodes   = "Each setting is a flag or a variable; the flag wins. Exit codes: 0 after a clean stop, 1 for an error, 2 for bad usage or settings."
)

// parse reads the arguments and returns what to do, nil if that was to print help.
func (p *program) parse(args []string) (func(context.Context) error, error) {
	var grammar cli
	helped := false
	k, err := p.parser(&grammar, func(int) { helped = true })
	if err != nil {
		return nil, err
	}
	parsed, err := k.Parse(args)
	if helped { // the parser goes on after help, and may then miss something
		return nil, nil
	}
	if err != nil {
		return nil, usageError(err)
	}
	return p.command(parsed.Selected().Path(), &grammar)
}

func (p *program) parser(grammar *cli, exit func(int)) (*kong.Kong, error) {
	options := append(config.Options(p.env),
		kong.Name("platform"),
		kong.Description(description+"\n\n"+exitCodes),
		kong.Writers(p.stdout, p.stderr),
		kong.Exit(exit),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true, WrapUpperBound: 120}),
	)
	k, err := kong.New(grammar, options...)
	if err != nil {
		return nil, fmt.Errorf("describe the command line: %w", err)
	}
	return k, nil
}

// usage prints help to those who gave no command.
func (p *program) usage() int {
	helper := *p
	helper.stdout = p.stderr
	if _, err := helper.parse([]string{"--help"}); err != nil {
		p.complain(err)
	}
	return exitUsage
}

// usageError takes what the parser adds away from errors that say everything themselves.
func usageError(err error) error {
	var setting *config.Error
	if errors.As(err, &setting) {
		return setting
	}
	return fmt.Errorf("%w (see platform --help)", err)
}

func (p *program) command(name string, settings *cli) (func(context.Context) error, error) {
	switch name {
	case "run":
		return func(ctx context.Context) error {
			return p.work.run(ctx, settings.Run, p.logger(settings.Run.Log))
		}, nil
	case "dev":
		return func(ctx context.Context) error {
			return p.work.dev(ctx, settings.Dev, p.stdout, p.logger(settings.Dev.Log))
		}, nil
	case "migrate":
		return func(ctx context.Context) error { return p.work.migrate(ctx, settings.Migrate, p.stdout) }, nil
	case "rebuild":
		return func(ctx context.Context) error {
			return p.work.rebuild(ctx, settings.Rebuild, p.stdout, p.logger(settings.Rebuild.Log))
		}, nil
	case "republish":
		return func(ctx context.Context) error { return p.work.republish(ctx, settings.Republish, p.stdout) }, nil
	case "simulate":
		return func(ctx context.Context) error { return p.work.simulate(ctx, settings.Simulate, p.stdout) }, nil
	case "routes":
		return func(context.Context) error { return p.work.routes(p.stdout) }, nil
	case "health":
		return func(ctx context.Context) error { return health(ctx, settings.Health, p.stdout) }, nil
	case "dlq list":
		return func(ctx context.Context) error { return listLetters(ctx, settings.DLQ.List, p.stdout, p.stderr) }, nil
	case "dlq show":
		return func(ctx context.Context) error { return showLetters(ctx, settings.DLQ.Show, p.stdout) }, nil
	case "dlq replay":
		return func(ctx context.Context) error {
			return replayLetters(ctx, settings.DLQ.Replay, p.stdin, p.stdout, p.stderr)
		}, nil
	case "dlq discard":
		return func(ctx context.Context) error { return discardLetters(ctx, settings.DLQ.Discard, p.stdout) }, nil
	case "doctor":
		return func(ctx context.Context) error { return p.work.doctor(ctx, settings.Doctor, p.stdout) }, nil
	case "token":
		return func(context.Context) error { return printToken(settings.Token, p.stdout) }, nil
	case "version":
		return func(context.Context) error { return printVersion(p.stdout) }, nil
	default:
		return nil, fmt.Errorf("command %q has no implementation", name)
	}
}

// logger returns the log of the process. It goes to stderr: stdout is for what a command was asked for.
func (p *program) logger(settings config.Log) *slog.Logger {
	levels := map[string]slog.Level{
		"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
	}
	options := &slog.HandlerOptions{Level: levels[settings.LogLevel]}
	if settings.LogFormat == "text" {
		return slog.New(slog.NewTextHandler(p.stderr, options))
	}
	return slog.New(slog.NewJSONHandler(p.stderr, options))
}

// oneLine returns an error's text without the line breaks that joined errors have.
func oneLine(err error) string {
	var lines []string
	for line := range strings.Lines(err.Error()) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "; ")
}

// isTerminal reports whether a person is likely to look at w.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
