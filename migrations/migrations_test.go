package migrations_test

import (
	"database/sql"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"github.com/cornjacket/platform-services/internal/pgtest"
	"github.com/cornjacket/platform-services/migrations"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, pgtest.IgnoreServer()) }

const (
	ingestion    = "ingestion"
	eventhandler = "eventhandler"
)

// owned are the tables of each service, without those of goose.
var owned = map[string][]string{
	ingestion:    {"outbox", "event_store", "relay_cursor", "relay_counts", "topic_partitions"},
	eventhandler: {"projections", "projection_versions", "projection_refusals"},
}

// shared are the tables that each owner's database has.
var shared = []string{"dlq", "dlq_replays", "dlq_replay_letters", "consumer_positions", "goose_common"}

func open(t *testing.T, url string) *sql.DB {
	t.Helper()
	db := stdlib.OpenDBFromPool(pgtest.Pool(t, url))
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	return db
}

func exists(t *testing.T, db *sql.DB, table string) bool {
	t.Helper()
	var found bool
	require.NoError(t, db.QueryRow(`SELECT to_regclass($1) IS NOT NULL`, table).Scan(&found))
	return found
}

func up(t *testing.T, db *sql.DB, service string, want int) {
	t.Helper()
	n, err := migrations.Up(t.Context(), db, service)
	require.NoError(t, err)
	require.Equal(t, want, n)
}

// filesOf returns the paths of the migrations in folders, in their order.
func filesOf(t *testing.T, folders ...string) []string {
	t.Helper()
	var paths []string
	for _, folder := range folders {
		found, err := filepath.Glob(filepath.Join(folder, "*.sql"))
		require.NoError(t, err)
		require.NotEmpty(t, found)
		paths = append(paths, found...)
	}
	return paths
}

// all returns the number of migrations in folders.
func all(t *testing.T, folders ...string) int {
	t.Helper()
	return len(filesOf(t, folders...))
}

func count(t *testing.T, db *sql.DB, query string) int {
	t.Helper()
	var n int
	require.NoError(t, db.QueryRow(query).Scan(&n))
	return n
}

const addLetter = `INSERT INTO dlq (consumer, event_payload, error_message, source_topic, bus_topic) VALUES ($1, '', '', '', '')`

func TestUpCreatesTheTablesOfOneService(t *testing.T) {
	t.Parallel()
	for service, tables := range owned {
		t.Run(service, func(t *testing.T) {
			t.Parallel()
			db := open(t, "")
			up(t, db, service, all(t, "common", service))
			up(t, db, service, 0)
			for _, table := range slices.Concat(tables, shared, []string{"goose_" + service}) {
				require.True(t, exists(t, db, table), table)
			}
			for other, theirs := range owned {
				if other != service {
					require.False(t, exists(t, db, theirs[0]), theirs[0])
					require.False(t, exists(t, db, "goose_"+other))
				}
			}
		})
	}
}

// Eight instances of two services start at once, on one database or on one each.
func TestUpConcurrently(t *testing.T) {
	t.Parallel()
	for name, databases := range map[string]int{"one database": 1, "two databases": 2} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			urls := map[string]string{ingestion: pgtest.URL(t)}
			urls[eventhandler] = urls[ingestion]
			if databases == 2 {
				urls[eventhandler] = pgtest.URL(t)
			}
			applied := make(chan int, 8)
			var g errgroup.Group
			for i := range 8 {
				service := []string{ingestion, eventhandler}[i%2]
				db := open(t, urls[service])
				g.Go(func() error {
					n, err := migrations.Up(t.Context(), db, service)
					applied <- n
					return err
				})
			}
			require.NoError(t, g.Wait())
			close(applied)
			total := 0
			for n := range applied {
				total += n
			}
			require.Equal(t, databases*all(t, "common")+all(t, ingestion, eventhandler), total, "each migration is applied by one of them")
			for service, tables := range owned {
				db := open(t, urls[service])
				for _, table := range slices.Concat(tables, shared) {
					require.True(t, exists(t, db, table), table)
				}
				require.Equal(t, all(t, service), count(t, db, `SELECT count(*) FROM goose_`+service+` WHERE version_id > 0`))
			}
		})
	}
}

func TestList(t *testing.T) {
	t.Parallel()
	db := open(t, "")
	list := func(service string) (names []string, applied int) {
		list, err := migrations.List(t.Context(), db, service)
		require.NoError(t, err)
		for _, m := range list {
			require.Equal(t, service, m.Service)
			names = append(names, m.Name)
			if m.Applied {
				applied++
			}
		}
		return names, applied
	}
	for _, service := range migrations.Services() {
		names, applied := list(service)
		require.Equal(t, filesOf(t, "common", service), names)
		require.Zero(t, applied)
	}
	up(t, db, ingestion, all(t, "common", ingestion))
	names, applied := list(ingestion)
	require.Len(t, names, applied)
	_, applied = list(eventhandler)
	require.Equal(t, all(t, "common"), applied, "the other service's is not touched")
}

func TestResetLeavesOtherServicesAlone(t *testing.T) {
	t.Parallel()
	for service, other := range map[string]string{ingestion: eventhandler, eventhandler: ingestion} {
		t.Run(service, func(t *testing.T) {
			t.Parallel()
			db := open(t, "")
			up(t, db, ingestion, all(t, "common", ingestion))
			up(t, db, eventhandler, all(t, eventhandler))
			for _, consumer := range []string{"ingestion", "relay", "eventhandler"} {
				_, err := db.Exec(addLetter, consumer)
				require.NoError(t, err)
			}
			for _, one := range []string{ingestion, eventhandler} {
				_, err := db.Exec(`WITH r AS (
						INSERT INTO dlq_replays (replay_id, service, filter, rate, total) VALUES (gen_random_uuid(), $1, '{}', 1, 0) RETURNING replay_id
					) INSERT INTO dlq_replay_letters (dlq_id, replay_id, turn) SELECT gen_random_uuid(), replay_id, 1 FROM r`, one)
				require.NoError(t, err)
			}
			n, err := migrations.Reset(t.Context(), db, service)
			require.NoError(t, err)
			require.Equal(t, all(t, service), n)
			require.Equal(t, 1, count(t, db, `SELECT count(*) FROM dlq_replays WHERE service = '`+other+`'`))
			require.Equal(t, 1, count(t, db, `SELECT count(*) FROM dlq_replays`))
			require.Equal(t, 1, count(t, db, `SELECT count(*) FROM dlq_replay_letters JOIN dlq_replays USING (replay_id)`))
			require.Equal(t, 1, count(t, db, `SELECT count(*) FROM dlq_replay_letters`))
			require.False(t, exists(t, db, owned[service][0]))
			for _, table := range slices.Concat(owned[other], shared) {
				require.True(t, exists(t, db, table), table)
			}
			if service == ingestion {
				require.Zero(t, count(t, db, `SELECT count(*) FROM dlq WHERE consumer IN ('ingestion', 'relay')`))
				require.Equal(t, 1, count(t, db, `SELECT count(*) FROM dlq`))
			} else {
				require.Zero(t, count(t, db, `SELECT count(*) FROM dlq WHERE consumer = 'eventhandler'`))
				require.Equal(t, 2, count(t, db, `SELECT count(*) FROM dlq`))
			}
			up(t, db, other, 0)
			up(t, db, service, all(t, service))
		})
	}
}

func TestUpResetUp(t *testing.T) {
	t.Parallel()
	db := open(t, "")
	for _, service := range []string{ingestion, eventhandler} {
		n, err := migrations.Reset(t.Context(), db, service)
		require.NoError(t, err)
		require.Zero(t, n, "nothing to undo")
	}
	for round := range 2 {
		if round == 0 {
			up(t, db, ingestion, all(t, "common", ingestion))
		} else {
			up(t, db, ingestion, all(t, ingestion))
		}
		up(t, db, eventhandler, all(t, eventhandler))
		_, err := db.Exec(`INSERT INTO outbox (event_id, event_type, aggregate_id, event_time, ingested_at, payload, metadata)
			VALUES (gen_random_uuid(), 'a.b', 'x', now(), now(), '{}', '{}')`)
		require.NoError(t, err)
		require.Equal(t, 1, count(t, db, `SELECT count(*) FROM outbox`), "the table is new")
		require.Equal(t, 1, count(t, db, `SELECT count(*) FROM relay_cursor WHERE name = 'bus' AND position = 0`))
		for _, service := range []string{ingestion, eventhandler} {
			n, err := migrations.Reset(t.Context(), db, service)
			require.NoError(t, err)
			require.Equal(t, all(t, service), n)
		}
	}
}

func TestAnUnknownServiceIsAnError(t *testing.T) {
	t.Parallel()
	_, err := migrations.Up(t.Context(), open(t, ""), "nobody")
	require.ErrorContains(t, err, "nobody")
}

func TestErrorsNameTheService(t *testing.T) {
	t.Parallel()
	db := open(t, "")
	_, err := db.Exec(`CREATE TABLE projection_refusals (x int)`) // somebody else's
	require.NoError(t, err)
	_, err = migrations.Up(t.Context(), db, eventhandler)
	require.ErrorContains(t, err, "migrate eventhandler")
	require.False(t, exists(t, db, "projections"), "a migration is applied as a whole or not at all")
}

func TestEveryFileGoesUpAndDown(t *testing.T) {
	t.Parallel()
	seen := make(map[string]bool)
	require.NoError(t, fs.WalkDir(os.DirFS("."), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".sql") {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		_, down, found := strings.Cut(string(text), "-- +goose Down\n")
		if !found || !strings.HasPrefix(string(text), "-- +goose Up\n") || strings.TrimSpace(down) == "" {
			t.Errorf("%s: must have an Up and a Down", path)
		}
		service, _, _ := strings.Cut(path, "/")
		seen[service] = true
		return nil
	}))
	for _, folder := range append(migrations.Services(), migrations.Common) {
		require.True(t, seen[folder], folder)
		delete(seen, folder)
	}
	require.Empty(t, seen, "folders that Services does not know")
}
