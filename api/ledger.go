package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"

	"github.com/cornjacket/platform-services/ledger"
)

// Accounts say where events are. Its methods are called concurrently and must return soon after ctx ends. Errors:
// [fault.ErrNotFound], [fault.ErrUnavailable]; any other is a bug.
type Accounts interface {
	// Ledger counts all events by where they are. It may be a little old.
	Ledger(ctx context.Context) (ledger.Ledger, error)
	// Journey returns where one event has been, or fault.ErrNotFound.
	Journey(ctx context.Context, id uuid.UUID) (ledger.Journey, error)
}

// MountLedger adds the ledger and the journeys of events to the API of a port.
func MountLedger(a *API, accounts Accounts) {
	register(a, huma.Operation{
		OperationID: "get-ledger", Method: http.MethodGet, Path: "/api/v1/ledger", Tags: []string{"ledger"},
		Summary: "Where all events are",
		Description: "accepted = sequenced + duplicates + pending.outbox + what the log could not hold; sequenced = published + pending.relay + " +
			"dead letters of the relay; published on a consumer's topics = applied + its dead letters + its pending. Balanced when nothing is pending.",
		Responses: explain(map[int]string{200: "The ledger, at most a second old unless reading it takes long."}),
	}, func(ctx context.Context, _ *struct{}) (ledger.Ledger, error) { return accounts.Ledger(ctx) })
	register(a, huma.Operation{
		OperationID: "get-journey", Method: http.MethodGet, Path: "/api/v1/events/{event_id}/journey", Tags: []string{"ledger"},
		Summary: "Where one event has been, and where it is", Description: "Also of an event that was never stored and is a dead letter.",
		Responses: explain(map[int]string{200: "The journey.", 404: "There is no such event, and no dead letter of one."}),
	}, func(ctx context.Context, in *oneEvent) (ledger.Journey, error) {
		j, err := accounts.Journey(ctx, in.ID)
		return j, notFound(err, "there is no event %s, and no dead letter of one", in.ID)
	})
}
