package doctor

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/cornjacket/platform-services/internal/config"
	"github.com/cornjacket/platform-services/migrations"
	"github.com/cornjacket/platform-services/routers"
)

// database is one database and what it is for.
type database struct {
	name  string // of the variables that name it
	url   string
	owner []string // folders of the migrations that are applied to it
}

// databases are those that the services use, each once.
func databases(s config.Doctor) []examination {
	var all []*database
	for _, setting := range routers.Databases() {
		used := func(service string) bool { return slices.Contains(s.Services, service) }
		if !slices.ContainsFunc(routers.UsersOf(setting), used) {
			continue
		}
		address := s.URLs.Get(setting.Variable)
		i := slices.IndexFunc(all, func(d *database) bool { return d.url == address })
		if i < 0 {
			all = append(all, &database{url: address})
			i = len(all) - 1
		}
		d := all[i]
		name := strings.ToLower(strings.TrimSuffix(setting.Variable, "_DATABASE_URL"))
		d.name = strings.TrimPrefix(d.name+"+"+name, "+")
		d.owner = append(d.owner, setting.Migrations...)
	}
	list := make([]examination, 0, len(all))
	for _, d := range all {
		list = append(list, examination{area: "database", check: d.name, look: func(ctx context.Context) []Finding { return d.check(ctx, s.Timeout) }})
	}
	return list
}

func (d *database) target() string {
	u, err := url.Parse(d.url)
	if err != nil {
		return "the database"
	}
	return u.Host + u.Path
}

func (d *database) check(ctx context.Context, timeout time.Duration) []Finding {
	a := about("database")
	cfg, err := pgx.ParseConfig(d.url)
	if err != nil {
		return []Finding{a.fail(d.name, "correct the URL", "%s", "the URL can't be read")}
	}
	cfg.ConnectTimeout = timeout
	cfg.RuntimeParams["application_name"] = "cornjacket-doctor"
	began := time.Now()
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return []Finding{a.fail(d.name, "start PostgreSQL, or correct the URL and the credentials in it", "%s: %s", d.target(), reason(ctx, err))}
	}
	defer func() {
		closeCtx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = conn.Close(closeCtx) // nothing was written
	}()
	var version string
	if err := conn.QueryRow(ctx, `SHOW server_version`).Scan(&version); err != nil {
		return []Finding{a.fail(d.name, "see the log of PostgreSQL", "%s: %s", d.target(), reason(ctx, err))}
	}
	found := []Finding{a.ok(d.name, "%s: PostgreSQL %s, %s", d.target(), version, time.Since(began).Round(100*time.Microsecond))}
	for _, look := range []func(context.Context, *pgx.Conn) ([]Finding, error){d.durability, d.load, d.migrations} {
		more, err := look(ctx, conn)
		if err != nil {
			more = []Finding{a.fail(d.name, "see the log of PostgreSQL", "%s: %s", d.target(), reason(ctx, err))}
		}
		found = append(found, more...)
	}
	return found
}

// durability looks at what makes a commit one that stays.
func (d *database) durability(ctx context.Context, conn *pgx.Conn) ([]Finding, error) {
	a := about("database")
	var fsync, commit, pages string
	var replica bool
	err := conn.QueryRow(ctx, `SELECT current_setting('fsync'), current_setting('synchronous_commit'), current_setting('full_page_writes'),
		pg_is_in_recovery()`).Scan(&fsync, &commit, &pages, &replica)
	if err != nil {
		return nil, fmt.Errorf("read settings: %w", err)
	}
	check := d.name + " durability"
	switch {
	case replica && len(d.owner) > 0:
		return []Finding{a.fail(check, "name the primary in the URL", "it is a standby, to which %s can't write", strings.Join(d.owner, " and "))}, nil
	case len(d.owner) == 0:
		return nil, nil // it is only read
	case fsync == "off":
		return []Finding{a.fail(check, "set fsync = on", "fsync is off: accepted events can be lost, and the database with them")}, nil
	case commit == "off":
		return []Finding{a.fail(check, "set synchronous_commit = on", "synchronous_commit is off: accepted events can be lost in a crash")}, nil
	case pages == "off":
		return []Finding{a.warn(check, "set full_page_writes = on unless the file system writes pages whole", "full_page_writes is off")}, nil
	}
	return []Finding{a.ok(check, "fsync %s, synchronous_commit %s, full_page_writes %s", fsync, commit, pages)}, nil
}

// spare is how many connections should be free: about what one process of the platform takes.
const spare = 20

// load looks at connections, old transactions and vacuum.
func (d *database) load(ctx context.Context, conn *pgx.Conn) ([]Finding, error) {
	const tooOld = 5 * time.Minute
	a := about("database")
	var limit, used int
	var oldest float64
	var vacuum string
	err := conn.QueryRow(ctx, `SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int,
		(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),
		(SELECT coalesce(max(extract(epoch FROM now() - xact_start)), 0)::float8 FROM pg_stat_activity
			WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'), current_setting('autovacuum')`).
		Scan(&limit, &used, &oldest, &vacuum)
	if err != nil {
		return nil, fmt.Errorf("read activity: %w", err)
	}
	found := []Finding{a.ok(d.name+" connections", "%d of %d in use", used, limit)}
	if limit-used < spare {
		found[0] = a.warn(d.name+" connections", "raise max_connections", "%d of %d in use: another instance may get none", used, limit)
	}
	age := time.Duration(oldest * float64(time.Second)).Round(time.Second)
	if age > tooOld {
		found = append(found, a.warn(d.name+" oldest transaction", "find it in pg_stat_activity by xact_start and end it: what is deleted can't be cleaned up before",
			"is open for %s", age))
	} else {
		found = append(found, a.ok(d.name+" oldest transaction", "%s", age))
	}
	if vacuum != "on" {
		found = append(found, a.fail(d.name+" autovacuum", "set autovacuum = on: tables that are rewritten all the time grow without end", "is off"))
	} else {
		found = append(found, a.ok(d.name+" autovacuum", "on"))
	}
	return found, nil
}

// migrations compares what is applied with what this binary knows, and applies nothing.
func (d *database) migrations(ctx context.Context, conn *pgx.Conn) ([]Finding, error) {
	a := about("database")
	var found []Finding
	folders := d.owner
	if len(folders) > 0 {
		folders = append([]string{migrations.Common}, folders...)
	}
	for _, service := range folders {
		check := "migrations of " + service
		newest, err := migrations.Newest(service)
		if err != nil {
			return nil, err
		}
		table := pgx.Identifier{"goose_" + service}.Sanitize()
		var exists bool
		if err := conn.QueryRow(ctx, `SELECT to_regclass($1) IS NOT NULL`, table).Scan(&exists); err != nil {
			return nil, fmt.Errorf("look for migrations: %w", err)
		}
		var applied int64
		if exists {
			if err := conn.QueryRow(ctx, `SELECT coalesce(max(version_id), 0) FROM `+table+` WHERE is_applied`).Scan(&applied); err != nil {
				return nil, fmt.Errorf("read migrations: %w", err)
			}
		}
		switch {
		case applied < newest:
			found = append(found, a.fail(check, "run: platform migrate up (a service does it when it starts)", "version %d of %d is applied", applied, newest))
		case applied > newest:
			found = append(found, a.warn(check, "use the newer binary", "version %d is applied, this binary knows %d", applied, newest))
		default:
			found = append(found, a.ok(check, "version %d of %d", applied, newest))
		}
	}
	return found, nil
}
