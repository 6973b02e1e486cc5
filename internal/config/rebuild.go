package config

import (
	"strings"
	"time"

	"github.com/cornjacket/platform-services/handlers"
)

// Rebuild are the settings of `platform rebuild`.
type Rebuild struct {
	Type           string        `arg:"" type:"projectiontype" name:"projection type" help:"What to build anew from the event log: a projection type."`
	Status         bool          `help:"Say which versions there are and how far each is, and do nothing."`
	Diff           bool          `help:"Compare the version that is built with the one in use: rows, and up to 20 that differ."`
	Switch         bool          `help:"Take the version that is built into use, in one short transaction. The one before is kept."`
	Back           bool          `help:"Take the version that was in use before into use again, brought up to date."`
	Drop           bool          `help:"Delete all versions that are not in use."`
	Aggregate      string        `placeholder:"ID" help:"Make the row of this one aggregate anew, in place, from its events in their order."`
	JSON           bool          `name:"json" help:"Print JSON, one document a line."`
	StartupTimeout time.Duration `type:"duration" var:"STARTUP_TIMEOUT" default:"30s" help:"How long to wait for a database to answer, a duration."`
	Databases      `group:"Databases:"`
	Log            `group:"Log:" set:"log_format=text"`
}

// Validate reports settings that do not go together.
func (r *Rebuild) Validate() error {
	given := 0
	for _, set := range []bool{r.Status, r.Diff, r.Switch, r.Back, r.Drop, r.Aggregate != ""} {
		if set {
			given++
		}
	}
	if given > 1 {
		return &Error{Flag: "--status, --diff, --switch, --back, --drop, --aggregate", Problem: "are given together", Takes: "one of them, or none to build"}
	}
	return nil
}

// Republish are the settings of `platform republish`.
type Republish struct {
	From           int64         `type:"positive" required:"" placeholder:"POSITION" help:"Position of the first event that is published again; positions are in metadata.position and in GET /api/v1/events."`
	StartupTimeout time.Duration `type:"duration" var:"STARTUP_TIMEOUT" default:"30s" help:"How long to wait for the database to answer, a duration."`
	Databases      `group:"Databases:"`
}

func readProjectionType(s string) (string, error) {
	var known []string
	for _, p := range handlers.Projections() {
		if p.Type == s {
			return s, nil
		}
		known = append(known, p.Type)
	}
	return "", &Error{Value: s, Problem: "is not a projection type", Takes: "one of: " + strings.Join(known, ", ")}
}
