package app

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// component is a part of the platform with a life of its own.
type component interface {
	// Start returns once the component works, or with what keeps it from working. ctx bounds the start only: what goes
	// on afterwards ends with Stop.
	Start(ctx context.Context) error
	// Stop ends the component, soon after the end of ctx at the latest. It is called once after Start, also after one
	// that has failed halfway.
	Stop(ctx context.Context) error
}

// stage is a step of the start and of the stop.
type stage struct {
	name  string
	parts []component
}

// stages are the stages that have been started, in order. The zero value has none.
type stages struct{ started []stage }

// start starts a further stage, one component after the other.
func (s *stages) start(ctx context.Context, name string, parts ...component) error {
	for i, part := range parts {
		if i == 0 {
			s.started = append(s.started, stage{name: name})
		}
		last := &s.started[len(s.started)-1]
		last.parts = append(last.parts, part)
		if err := part.Start(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Stop stops the stages in the opposite order, the components of one at the same time. What has not stopped when ctx
// ends is reported and left behind.
func (s *stages) Stop(ctx context.Context) error {
	var errs []error
	for _, stage := range slices.Backward(s.started) {
		stopped := make(chan error, len(stage.parts))
		for _, part := range stage.parts {
			go func() { stopped <- part.Stop(ctx) }()
		}
		for range stage.parts {
			if err := within(ctx, stopped); err != nil {
				errs = append(errs, fmt.Errorf("stop %s: %w", stage.name, err))
			}
		}
	}
	s.started = nil
	return errors.Join(errs...)
}

// errLate is the error of what has not ended in time.
var errLate = errors.New("not done in time")

// within returns what comes from a channel, or errLate when ctx ends before.
func within(ctx context.Context, c <-chan error) error {
	select {
	case err := <-c:
		return err
	case <-ctx.Done():
	}
	select { // both may be true
	case err := <-c:
		return err
	default:
		return errLate
	}
}

// loop is a component that works in the background.
type loop struct {
	run    func(ctx context.Context) // returns soon after the end of ctx
	cancel context.CancelFunc
	done   chan error
}

// Start starts the work.
func (l *loop) Start(context.Context) error {
	var ctx context.Context
	ctx, l.cancel = context.WithCancel(context.Background())
	l.done = make(chan error, 1)
	go func() {
		defer close(l.done)
		l.run(ctx)
	}()
	return nil
}

// Stop ends the work, if it has begun, and waits until it has ended.
func (l *loop) Stop(ctx context.Context) error {
	if l.cancel == nil {
		return nil
	}
	l.end()
	return within(ctx, l.done)
}

// end ends the work and does not wait.
func (l *loop) end() {
	if l.cancel != nil {
		l.cancel()
	}
}

// onStart is a component that is a step of the start alone.
type onStart func(ctx context.Context) error

// Start does the step.
func (f onStart) Start(ctx context.Context) error { return f(ctx) }

// Stop does nothing.
func (onStart) Stop(context.Context) error { return nil }

// onStop is a component that works already, and is to be stopped.
type onStop func(ctx context.Context) error

// Start does nothing.
func (onStop) Start(context.Context) error { return nil }

// Stop stops it.
func (f onStop) Stop(ctx context.Context) error { return f(ctx) }
