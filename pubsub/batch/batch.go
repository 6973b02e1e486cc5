// Package batch is what the subscribers share: records that were read together travel as one Watermill message, in the
// order of their source. One batch is in flight at a time, so that order, retry and acknowledgement need no machinery.
package batch

import (
	"context"
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/cornjacket/platform-services/event"
)

// Record is one message of a source, as it came.
type Record struct {
	Topic     string // where it was read
	Partition int32  // -1 where the source has none
	Offset    int64  // -1 where the source has none
	Key       string // of what has an order of its own, such as an aggregate; may be empty
	// ID tells the message from others of its source. It is the same each time that the record is handed out.
	ID      string
	At      time.Time // when it came to its source; zero if unknown
	Value   []byte
	Headers []Header
	// Event is what Value says, if the source has read it already; Value may then be empty.
	Event *event.Envelope
}

// Header is a name and a value beside the value of a record.
type Header struct {
	Key   string
	Value string
}

// Header returns the value of a header, empty if there is none.
func (r *Record) Header(key string) string {
	for i := range r.Headers {
		if r.Headers[i].Key == key {
			return r.Headers[i].Value
		}
	}
	return ""
}

// Batch is the records of one Watermill message. It belongs to the owner of the message.
type Batch struct {
	// Attempts is how often the first record that is not done has been tried alone.
	Attempts int
	// Pause is how long the next batch of the source is to gather, at least; a handler may set it.
	Pause time.Duration

	records []Record
	done    int // of the records, from the first
	end     int // of those that are to be handled together
}

type batchKey struct{}

// New returns records as one message whose context ends with ctx. A single record is the message's payload and metadata
// too, as for any Watermill handler.
func New(ctx context.Context, records []Record) *message.Message {
	m := message.NewMessage("", nil)
	if len(records) > 0 {
		m.UUID = records[0].ID
	}
	if len(records) == 1 {
		r := &records[0]
		m.Payload = r.Value
		for _, h := range r.Headers {
			m.Metadata[h.Key] = h.Value
		}
	}
	m.SetContext(context.WithValue(ctx, batchKey{}, &Batch{records: records, end: len(records)}))
	return m
}

// From returns the batch that a message carries. A message of a subscriber that knows no batches is a batch of one.
func From(m *message.Message) *Batch {
	if b, ok := m.Context().Value(batchKey{}).(*Batch); ok {
		return b
	}
	r := Record{Topic: message.SubscribeTopicFromCtx(m.Context()), Partition: -1, Offset: -1, ID: m.UUID, Value: m.Payload}
	for k, v := range m.Metadata {
		r.Headers = append(r.Headers, Header{Key: k, Value: v})
	}
	slices.SortFunc(r.Headers, func(a, b Header) int { return compare(a.Key, b.Key) })
	b := &Batch{records: []Record{r}, end: 1}
	m.SetContext(context.WithValue(m.Context(), batchKey{}, b))
	return b
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// Records returns the records that are to be handled now, all or none.
func (b *Batch) Records() []Record { return b.records[b.done:b.end] }

// Rest returns all records that are not done.
func (b *Batch) Rest() []Record { return b.records[b.done:] }

// Done says that the first n of the rest are done, and takes all that is left together again.
func (b *Batch) Done(n int) {
	b.done = min(b.done+n, len(b.records))
	b.end, b.Attempts = len(b.records), 0
}

// Narrow makes the first n records of the rest those that are to be handled now.
func (b *Batch) Narrow(n int) { b.end = min(b.done+max(n, 1), len(b.records)) }

// Refusal is a record that can never be handled.
type Refusal struct {
	Index int // of the record
	Err   error
}
