package doctor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/cornjacket/platform-services/internal/config"
	"github.com/cornjacket/platform-services/internal/tlsconf"
	"github.com/cornjacket/platform-services/pubsub/kafka"
	"github.com/cornjacket/platform-services/routers"
)

func checkBus(ctx context.Context, s config.Doctor) []Finding {
	a := about("bus")
	security, err := busSecurity(s.Bus)
	if err != nil {
		return []Finding{a.fail("brokers", "correct REDPANDA_TLS_CA_FILE", "%s", reason(ctx, err))}
	}
	client, err := kafka.NewSecureClient(s.RedpandaBrokers, security, slog.New(slog.DiscardHandler))
	if err != nil {
		return []Finding{a.fail("brokers", "correct REDPANDA_BROKERS", "%s", reason(ctx, err))}
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	began := time.Now()
	meta, err := admin.Metadata(ctx, routers.Topics()...)
	if err != nil {
		return []Finding{a.fail("brokers", "start the bus, or correct REDPANDA_BROKERS", "%s: %s", strings.Join(s.RedpandaBrokers, ", "), reason(ctx, err))}
	}
	found := []Finding{a.ok("brokers", "%d at %s, %s", len(meta.Brokers), strings.Join(s.RedpandaBrokers, ", "), time.Since(began).Round(100*time.Microsecond))}
	kept, keptErr := retentions(ctx, admin)
	for _, topic := range routers.Topics() {
		f := checkTopic(meta.Topics[topic], topic, len(meta.Brokers), s)
		switch {
		case f.Status == Fail:
		case keptErr != nil:
			f.Detail += ", retention unknown"
		default:
			f = withRetention(f, kept[topic], s.TopicRetention)
		}
		found = append(found, f)
	}
	for _, r := range routers.Routes() {
		if r.Group != "" && slices.Contains(s.Services, r.Service) {
			found = append(found, checkGroup(ctx, admin, r.Group+s.ConsumerGroupSuffix))
		}
	}
	return found
}

func busSecurity(b config.Bus) (kafka.Security, error) {
	s := kafka.Security{Username: b.RedpandaSASLUsername, Password: b.RedpandaSASLPassword}
	if b.RedpandaSASLMechanism != config.SASLNone {
		s.Mechanism = b.RedpandaSASLMechanism
	}
	if !b.RedpandaTLS {
		return s, nil
	}
	var err error
	s.TLS, err = tlsconf.Client(b.RedpandaTLSCAFile)
	return s, err
}

func checkTopic(t kadm.TopicDetail, name string, brokers int, s config.Doctor) Finding {
	a := about("bus")
	check := "topic " + name
	if t.Err != nil || len(t.Partitions) == 0 {
		return a.fail(check, "start the relay or the event handler, which create it, or see whether they may", "does not exist")
	}
	replicas := t.Partitions.NumReplicas()
	detail := fmt.Sprintf("%d partitions, %d replicas", len(t.Partitions), replicas)
	for _, p := range t.Partitions.Sorted() {
		switch {
		case p.Leader < 0 || p.Err != nil:
			return a.fail(check, "bring back the brokers that have it", "%s; partition %d has no leader", detail, p.Partition)
		case len(p.ISR) < len(p.Replicas):
			return a.warn(check, "see what ails the brokers that are behind", "%s; partition %d has %d in sync", detail, p.Partition, len(p.ISR))
		}
	}
	switch {
	case len(t.Partitions) != int(s.TopicPartitions):
		return a.warn(check, "set TOPIC_PARTITIONS to what it has; a topic that gets more puts keys elsewhere, out of order with what is there",
			"%s; TOPIC_PARTITIONS is %d", detail, s.TopicPartitions)
	case brokers > 1 && replicas < 2:
		return a.warn(check, "give it 3 replicas: with one, a broker that is lost takes events with it", "%s on %d brokers", detail, brokers)
	}
	return a.ok(check, "%s", detail)
}

// retentions returns for how long each topic keeps what it holds, in milliseconds; -1 is for ever.
func retentions(ctx context.Context, admin *kadm.Client) (map[string]int64, error) {
	configs, err := admin.DescribeTopicConfigs(ctx, routers.Topics()...)
	if err != nil {
		return nil, fmt.Errorf("ask for the settings of topics: %w", err)
	}
	kept := map[string]int64{}
	for _, c := range configs {
		for _, entry := range c.Configs {
			if entry.Key != "retention.ms" || entry.Value == nil {
				continue
			}
			if ms, err := strconv.ParseInt(*entry.Value, 10, 64); err == nil {
				kept[c.Name] = ms
			}
		}
	}
	return kept, nil
}

func withRetention(f Finding, ms int64, wanted time.Duration) Finding {
	kept := time.Duration(ms) * time.Millisecond
	switch {
	case ms == 0:
		f.Detail += ", retention unknown"
	case ms < 0:
		f.Detail += ", kept for good"
	case kept < wanted && f.Status == OK:
		f.Status, f.Advice = Warn, "raise its retention.ms: consumers that are away for longer catch up from the event log, which is slower"
		fallthrough
	default:
		f.Detail += fmt.Sprintf(", kept %s", kept)
	}
	return f
}

// farBehind is the lag from which a consumer is not just busy.
const farBehind = 100_000

func checkGroup(ctx context.Context, admin *kadm.Client, group string) Finding {
	a := about("bus")
	check := "group " + group
	lags, err := admin.Lag(ctx, group)
	if err == nil {
		l := lags[group]
		err = l.Error()
	}
	if errors.Is(err, kerr.GroupIDNotFound) {
		return a.warn(check, "start "+group, "nobody has joined it yet")
	}
	if err != nil {
		return a.warn(check, "see the log of the bus", "its lag can't be read: %s", reason(ctx, err))
	}
	l := lags[group]
	behind := l.Lag.Total()
	detail := fmt.Sprintf("%s, %d members, %d events behind what is committed", strings.ToLower(l.State), len(l.Members), behind)
	switch {
	case len(l.Members) == 0:
		return a.warn(check, "start "+group, "%s", detail)
	case behind >= farBehind:
		return a.warn(check, "see its health; it is slower than what comes in", "%s", detail)
	}
	return a.ok(check, "%s", detail)
}
