package config

import (
	"errors"
	"strings"
	"time"

	"github.com/google/uuid"
)

// DLQ are the settings of `platform dlq` and its commands.
type DLQ struct {
	List    DLQList    `cmd:"" help:"List dead letters, the newest first."`
	Show    DLQShow    `cmd:"" help:"Show dead letters with their whole payload."`
	Replay  DLQReplay  `cmd:"" help:"Give dead letters to the consumer that could not handle them again: those named, or --all that match. Exit code 1 if one is refused."`
	Discard DLQDiscard `cmd:"" help:"Mark dead letters as not to be applied: those named, or --all that match."`
}

// DLQList are the settings of `platform dlq list`.
type DLQList struct {
	Status    string `type:"oneof" enum:"pending,replayed,discarded,all" default:"pending" help:"Only letters with this status: ${enum}."`
	Limit     int    `type:"positive" unit:"letters" short:"n" default:"50" help:"Most letters to list."`
	DLQFilter `group:"Filters:"`
	DLQTarget `group:"Services:"`
}

// DLQShow are the settings of `platform dlq show`.
type DLQShow struct {
	IDs       []string `arg:"" name:"id" help:"dlq_id of each letter."`
	DLQTarget `group:"Services:"`
}

// DLQReplay are the settings of `platform dlq replay`.
type DLQReplay struct {
	IDs         []string `arg:"" optional:"" name:"id" help:"dlq_id of each letter."`
	All         bool     `help:"All pending letters that match the filters, as one bulk replay of each service."`
	DryRun      bool     `help:"Say what would be replayed, and do nothing."`
	Rate        float64  `type:"rate" unit:"letters a second" default:"100" help:"Most letters a second of each service, with --all; 0.01 to 10000."`
	NoWait      bool     `help:"With --all, start and return; the replay goes on in the service."`
	PayloadFile string   `placeholder:"FILE" help:"Replay the bytes of this file in place of the payload of the one letter named; - is stdin. What is stored stays as it came."`
	AsTopic     string   `placeholder:"TOPIC" help:"Replay the one letter named as if it came on this MQTT topic (letters of ingestion); with events the payload is an envelope."`
	DLQFilter   `group:"Filters (with --all):"`
	DLQTarget   `group:"Services:"`
}

// DLQDiscard are the settings of `platform dlq discard`.
type DLQDiscard struct {
	IDs       []string `arg:"" optional:"" name:"id" help:"dlq_id of each letter."`
	All       bool     `help:"All pending letters that match the filters."`
	DryRun    bool     `help:"Say what would be discarded, and do nothing."`
	Reason    string   `short:"m" help:"Why; kept with the letter."`
	DLQFilter `group:"Filters (with --all):"`
	DLQTarget `group:"Services:"`
}

// DLQFilter selects dead letters; what is empty selects all.
type DLQFilter struct {
	Consumer  string `type:"consumer" placeholder:"${consumers}" help:"Only letters of this consumer."`
	EventID   string `type:"uuid" placeholder:"UUID" help:"Only letters of this event."`
	EventType string `help:"Only letters of events of this type."`
	Topic     string `help:"Only letters that were read from this topic."`
	Error     string `help:"Only letters with this in their error message, in any case."`
	From      string `type:"rfc3339" placeholder:"TIME" help:"Only letters that failed at this time (RFC 3339) or later."`
	To        string `type:"rfc3339" placeholder:"TIME" help:"Only letters that failed before this time (RFC 3339)."`
}

// DLQTarget says where dead letters are asked for.
type DLQTarget struct {
	Addr     []string      `type:"hostports" placeholder:"HOST:PORT,..." help:"Addresses to ask, comma-separated, in place of those of the services."`
	Services []string      `type:"dlqservices" default:"${dlq_services}" placeholder:"NAME,..." help:"Services to ask, a comma-separated list of ${dlq_services_for}. Default: all."`
	Timeout  time.Duration `type:"duration" default:"1m" help:"How long to wait for one answer, a duration."`
	JSON     bool          `name:"json" help:"Print JSON, one document a line."`
	APIClient
	Addresses `group:"Addresses of the services (host:port):"`
}

// Validate reports settings that do not go together.
func (s *DLQShow) Validate() error { return checkIDs(s.IDs) }

// Validate reports settings that do not go together.
func (r *DLQReplay) Validate() error {
	if err := chosen(r.IDs, r.All, &r.DLQFilter); err != nil {
		return err
	}
	for flag, set := range map[string]bool{"--payload-file": r.PayloadFile != "", "--as-topic": r.AsTopic != ""} {
		if set && len(r.IDs) != 1 {
			return &Error{Flag: flag, Problem: "is for one letter, named by its ID"}
		}
	}
	if r.Rate < 0.01 || r.Rate > 10_000 {
		return &Error{Flag: "--rate", Problem: "is out of range", Takes: "a number of letters a second from 0.01 to 10000"}
	}
	return nil
}

// Validate reports settings that do not go together.
func (d *DLQDiscard) Validate() error { return chosen(d.IDs, d.All, &d.DLQFilter) }

// chosen reports a choice of letters that is none, or two.
func chosen(ids []string, all bool, f *DLQFilter) error {
	switch {
	case len(ids) == 0 && !all:
		return &Error{Flag: "<id>", Problem: "must be given, or --all"}
	case len(ids) > 0 && all:
		return &Error{Flag: "--all", Problem: "does not go with IDs"}
	case !all && *f != DLQFilter{}:
		return &Error{Flag: "--all", Problem: "must be given with filters"}
	}
	return checkIDs(ids)
}

func checkIDs(ids []string) error {
	for _, id := range ids {
		var bad *Error
		if _, err := readUUID(id); errors.As(err, &bad) {
			bad.Flag = "<id>"
			return bad
		}
	}
	return nil
}

func readUUID(s string) (string, error) {
	if id, err := uuid.Parse(s); err == nil && len(s) == 36 {
		return id.String(), nil
	}
	return "", &Error{Value: s, Problem: "is not a UUID", Takes: "a UUID such as 0190a5c0-7b1e-7c3a-9d3e-5f6a7b8c9d0e"}
}

func readConsumer(s string) (string, error) {
	if consumer := strings.ToLower(strings.TrimSpace(s)); DeskOf(consumer) != "" {
		return consumer, nil
	}
	return "", &Error{Value: s, Problem: "is not a consumer", Takes: orList(consumers(), "or")}
}

func readTime(s string) (string, error) {
	t, err := parseTime(s)
	if err != nil {
		return "", err
	}
	return t.Format(time.RFC3339Nano), nil
}

func parseTime(s string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339Nano, strings.TrimSpace(s))
	if err != nil {
		return time.Time{}, &Error{Value: s, Problem: "is not a time", Takes: "an RFC 3339 time such as 2026-02-07T10:00:00Z"}
	}
	return t.UTC(), nil
}
