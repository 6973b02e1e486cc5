package config

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/alecthomas/kong"

	"github.com/cornjacket/platform-services/routers"
)

// LookupEnv looks up a variable, like [os.LookupEnv].
type LookupEnv func(name string) (string, bool)

// Options teach a parser to read the settings of this package. Variables are looked up with env; one that is set to
// nothing counts as not set. A flag wins over a variable. What a setting does not take is reported as an [*Error].
func Options(env LookupEnv) []kong.Option {
	return []kong.Option{
		kong.Vars{
			"services":         strings.Join(routers.ServiceNames(), ","),
			"dlq_services":     strings.Join(routers.DeadLetterServices(), ","),
			"dlq_services_for": deadLetterServices(),
			"consumers":        strings.Join(consumers(), "|"),
			"database_url":     "postgres://cornjacket:cornjacket@localhost:5432/cornjacket?sslmode=disable",
			"mqtt_client_id":   "cornjacket-ingestion-" + hostname(),
			"state_dir":        stateDir(env),
		},
		mappers(),
		kong.PostBuild(func(k *kong.Kong) error {
			if err := expandTables(k.Model.Node); err != nil {
				return err
			}
			return setPlaceholders(k.Model.Node)
		}),
		// The parser's own way with variables reads them for every command at once, and prints the values of bad ones.
		kong.Resolvers(kong.ResolverFunc(func(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
			if value, ok := env(varOf(flag.Value)); ok && value != "" {
				return value, nil
			}
			return nil, nil
		})),
		kong.ValueFormatter(helpText),
	}
}

// Defaults returns the settings of `platform run` when nothing is set, for tests to start from.
func Defaults() (Run, error) {
	var r Run
	err := parseInto(&r)
	return r, err
}

// DevDefaults returns the settings of `platform dev` when nothing is set, for tests to start from.
func DevDefaults() (Dev, error) {
	var d Dev
	err := parseInto(&d)
	return d, err
}

func parseInto(settings any) error {
	k, err := kong.New(settings, Options(func(string) (string, bool) { return "", false })...)
	if err != nil {
		return fmt.Errorf("describe settings: %w", err)
	}
	if _, err := k.Parse(nil); err != nil {
		return fmt.Errorf("read default settings: %w", err)
	}
	return nil
}

// setPlaceholders names what each flag takes, for its help.
func setPlaceholders(node *kong.Node) error {
	return kong.Visit(node, func(v kong.Visitable, next kong.Next) error {
		if flag, ok := v.(*kong.Flag); ok && flag.PlaceHolder == "" {
			flag.PlaceHolder = placeholder(flag)
		}
		return next(nil)
	})
}

func placeholder(flag *kong.Flag) string {
	switch k := flag.Tag.Type; {
	case k == "hostport":
		return "HOST:PORT"
	case k == "oneof":
		return strings.ReplaceAll(flag.Enum, ",", "|")
	case strings.HasSuffix(k, "url"):
		return "URL"
	case k == "dir":
		return "FOLDER"
	case k == "instant":
		return "TIME"
	case flag.Target.Type() == durationType:
		return "DURATION"
	case flag.Target.CanInt() || flag.Target.CanFloat():
		return "N"
	default:
		return "TEXT"
	}
}

// helpText returns the help of a setting with its variable and default.
func helpText(v *kong.Value) string {
	if v.Flag == nil {
		return v.Help
	}
	var about []string
	if name := varOf(v); name != "" {
		about = append(about, name)
	}
	if v.HasDefault && !strings.Contains(v.Help, "Default: ") {
		about = append(about, strings.TrimSpace("default "+v.Default+" "+v.Tag.Get("unit")))
	}
	if len(about) == 0 {
		return v.Help
	}
	return strings.TrimSuffix(v.Help, ".") + " (" + strings.Join(about, ", ") + ")."
}

func hostname() string {
	name, err := os.Hostname()
	if err != nil || name == "" {
		return "localhost"
	}
	return name
}

// stateDir returns where state is kept by default. Source: XDG Base Directory Specification, which has relative paths
// ignored. It is empty when there is no home.
func stateDir(env LookupEnv) string {
	if dir, ok := env("XDG_STATE_HOME"); ok && filepath.IsAbs(dir) {
		return filepath.Join(dir, "cornjacket")
	}
	home, ok := env("HOME")
	if !ok || home == "" {
		var err error
		if home, err = os.UserHomeDir(); err != nil {
			return ""
		}
	}
	return filepath.Join(home, ".local", "state", "cornjacket")
}

// mapper makes a mapper of a function that reads the text of one kind of setting. The function leaves it to the mapper
// to say in its errors which setting they are about.
func mapper[T any](read func(v *kong.Value, s string) (T, error)) kong.Mapper {
	return kong.MapperFunc(func(ctx *kong.DecodeContext, target reflect.Value) error {
		token, err := ctx.Scan.PopValue("a")
		if err != nil {
			return &Error{Env: varOf(ctx.Value), Flag: flagOf(ctx.Value), Problem: "has no value"}
		}
		value, err := read(ctx.Value, fmt.Sprint(token.Value))
		if err != nil {
			return named(ctx.Value, err)
		}
		target.Set(reflect.ValueOf(value).Convert(target.Type()))
		return nil
	})
}
