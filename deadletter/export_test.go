package deadletter

import (
	"context"

	"github.com/google/uuid"
)

// Turn does the next turn of any bulk replay of the service, and returns whose it was; nil says that none was due.
func (s *Store) Turn(ctx context.Context) (uuid.UUID, error) {
	t, err := s.turn(ctx)
	return t.replay, err
}

// Limits of a page of the publisher.
const (
	PageLetters = pageLetters
	PageBytes   = pageBytes
)
