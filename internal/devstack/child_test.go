package devstack

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"
)

// runUntilKilled is the main function of the child processes that tests kill.
func runUntilKilled(what, dir string) {
	var err error
	switch what {
	case "postgres":
		err = writeToPostgres(dir)
	case "kafka":
		err = writeToKafka(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	select {}
}

func writeToPostgres(dir string) error {
	ctx := context.Background()
	pg, err := StartPostgres(ctx, testConfig(dir))
	if err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, pg.URL())
	if err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, "CREATE TABLE t AS SELECT 'kept' AS s"); err != nil {
		return err
	}
	return writeWhole(filepath.Join(dir, "pid"), strconv.Itoa(pg.PID()))
}

const kafkaRecords = 1000

func writeToKafka(dir string) error {
	ctx := context.Background()
	k, err := StartKafka(KafkaConfig{Addr: "127.0.0.1:0", Dir: dir, Topics: []string{"t"}, Partitions: 1})
	if err != nil {
		return err
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(k.Addr()), kgo.DefaultProduceTopic("t"),
		kgo.ConsumerGroup("g"), kgo.ConsumeTopics("t"), kgo.DisableAutoCommit())
	if err != nil {
		return err
	}
	for i := range kafkaRecords {
		if err := client.ProduceSync(ctx, kgo.StringRecord(strconv.Itoa(i))).FirstErr(); err != nil {
			return err
		}
	}
	var read []*kgo.Record
	for len(read) < kafkaRecords {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return err
		}
		read = append(read, fetches.Records()...)
	}
	if err := client.CommitRecords(ctx, read[:kafkaRecords/2]...); err != nil {
		return err
	}
	return writeWhole(filepath.Join(dir, "..", "done"), "done")
}

func writeWhole(path, text string) error {
	if err := os.WriteFile(path+".part", []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".part", path)
}
