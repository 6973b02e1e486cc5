package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"go.yaml.in/yaml/v3"
)

const (
	traefikStatic = "/etc/traefik/traefik.yaml"
	traefikPing   = "http://127.0.0.1:8180/ping"
)

// staticFile is the part of Traefik's static configuration that says where to listen and where the routes are.
type staticFile struct {
	EntryPoints map[string]struct {
		Address string `yaml:"address"`
	} `yaml:"entryPoints"`
	Providers struct {
		File struct {
			Filename string `yaml:"filename"`
		} `yaml:"file"`
	} `yaml:"providers"`
}

// routesFile is Traefik's dynamic configuration, as far as it is used; what is not known here is an error.
type routesFile struct {
	HTTP struct {
		Routers  map[string]*route   `yaml:"routers"`
		Services map[string]*service `yaml:"services"`
	} `yaml:"http"`
}

type route struct {
	EntryPoints []string `yaml:"entryPoints"`
	Rule        string   `yaml:"rule"`
	Service     string   `yaml:"service"`
	Priority    int      `yaml:"priority"`

	matches matcher
	to      *service
}

type service struct {
	LoadBalancer struct {
		Servers []struct {
			URL string `yaml:"url"`
		} `yaml:"servers"`
		HealthCheck struct {
			Path     string        `yaml:"path"`
			Interval time.Duration `yaml:"interval"`
			Timeout  time.Duration `yaml:"timeout"`
		} `yaml:"healthCheck"`
	} `yaml:"loadBalancer"`

	well  atomic.Bool
	proxy *httputil.ReverseProxy
}

// traefik stands in for Traefik: a reverse proxy with the routes and health checks of its files, and its answer to
// `traefik healthcheck`.
func traefik(ctx context.Context, args []string) error {
	if starts(args, "healthcheck") {
		return fetch(ctx, traefikPing, io.Discard)
	}
	var static staticFile
	if err := readYAML(traefikStatic, &static, false); err != nil {
		return err
	}
	var file routesFile
	if err := readYAML(static.Providers.File.Filename, &file, true); err != nil {
		return err
	}
	routes, err := file.prepare()
	if err != nil {
		return err
	}
	for name, s := range file.HTTP.Services {
		go s.watch(ctx, name)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ping", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "OK") // a client that has gone
	})
	failed := make(chan error, 2)
	go func() { failed <- serve(ctx, static.EntryPoints["traefik"].Address, mux) }()
	go func() { failed <- serve(ctx, static.EntryPoints["web"].Address, routes) }()
	return <-failed
}

func readYAML(path string, into any, strict bool) error {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	defer file.Close() //nolint:errcheck // nothing was written
	decoder := yaml.NewDecoder(file)
	decoder.KnownFields(strict)
	if err := decoder.Decode(into); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

// routeTable answers with the route of the highest priority that matches.
type routeTable []*route

func (f *routesFile) prepare() (routeTable, error) {
	for name, s := range f.HTTP.Services {
		if len(s.LoadBalancer.Servers) != 1 {
			return nil, fmt.Errorf("service %s: the stand-in takes one server", name)
		}
		target, err := url.Parse(s.LoadBalancer.Servers[0].URL)
		if err != nil {
			return nil, fmt.Errorf("service %s: %w", name, err)
		}
		s.proxy = &httputil.ReverseProxy{
			Rewrite: func(r *httputil.ProxyRequest) {
				r.SetURL(target)
				r.Out.Host = r.In.Host
				r.SetXForwarded()
			},
			FlushInterval: -1,
		}
	}
	var table routeTable
	for name, r := range f.HTTP.Routers {
		var err error
		if r.matches, err = parseRule(r.Rule); err != nil {
			return nil, fmt.Errorf("router %s: %w", name, err)
		}
		if r.to = f.HTTP.Services[r.Service]; r.to == nil {
			return nil, fmt.Errorf("router %s: there is no service %q", name, r.Service)
		}
		if !slices.Equal(r.EntryPoints, []string{"web"}) {
			return nil, fmt.Errorf("router %s: entry point must be web", name)
		}
		table = append(table, r)
	}
	if len(table) == 0 {
		return nil, errors.New("no routers")
	}
	slices.SortFunc(table, func(a, b *route) int { return b.Priority - a.Priority })
	return table, nil
}

// ServeHTTP passes a request on.
func (t routeTable) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	for _, route := range t {
		if !route.matches(r) {
			continue
		}
		if !route.to.well.Load() {
			http.Error(w, "no available server", http.StatusServiceUnavailable)
			return
		}
		route.to.proxy.ServeHTTP(w, r)
		return
	}
	http.NotFound(w, r)
}

// watch asks a server for its health until ctx ends.
func (s *service) watch(ctx context.Context, name string) {
	check := s.LoadBalancer.HealthCheck
	for {
		err := func() error {
			ctx, cancel := context.WithTimeout(ctx, check.Timeout)
			defer cancel()
			return fetch(ctx, strings.TrimSuffix(s.LoadBalancer.Servers[0].URL, "/")+check.Path, io.Discard)
		}()
		if well := err == nil; s.well.Swap(well) != well {
			slog.Info("health of a server has changed", "service", name, "well", well, "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(check.Interval):
		}
	}
}
