package event

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

const typicalReading = `{"event_type":"sensor.reading","aggregate_id":"device-001","event_time":"2026-02-07T10:00:00.123456Z",` +
	`"payload":{"value":72.5,"unit":"fahrenheit","humidity":41.2}}`

func benchOrigin() Origin {
	id := uuid.MustParse("0190a5c0-7b1e-7c3a-9d3e-5f6a7b8c9d0e")
	return Origin{Source: "http", Now: time.Date(2026, 2, 7, 10, 0, 1, 0, time.UTC), NewID: func() uuid.UUID { return id }}
}

func BenchmarkParse(b *testing.B) {
	body, o := []byte(typicalReading), benchOrigin()
	b.ReportAllocs()
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		if _, err := Parse(body, o); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseMQTT(b *testing.B) {
	body, o := []byte(`{"value":72.5,"unit":"fahrenheit","humidity":41.2}`), benchOrigin()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseMQTT("devices/device-001/events/sensor.reading", body, Properties{}, o); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCheckSchema(b *testing.B) {
	body := []byte(`{"value":72.5,"unit":"fahrenheit","humidity":41.2}`)
	b.ReportAllocs()
	for b.Loop() {
		if err := checkSchema("sensor.reading", body); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMarshal(b *testing.B) {
	e, err := Parse([]byte(typicalReading), benchOrigin())
	require.NoError(b, err)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := e.Marshal(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkUnmarshal(b *testing.B) {
	e, err := Parse([]byte(typicalReading), benchOrigin())
	require.NoError(b, err)
	data, err := e.Marshal()
	require.NoError(b, err)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Unmarshal(data); err != nil {
			b.Fatal(err)
		}
	}
}
