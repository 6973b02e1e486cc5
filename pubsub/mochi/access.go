package mochi

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// Users are who may connect to a broker, and with which password. The name of a user that is no superuser is the ID of a
// device, which may publish below devices/{name}/ and read devices/{name}/commands/ only, and connects under client IDs
// that begin with its name: the rules of the brokers in compose/. A nil *Users lets everyone do everything.
type Users struct {
	byName map[string]account
}

type account struct {
	password  [sha256.Size]byte
	superuser bool
}

// usersHead is the first line of a file of users.
var usersHead = []string{"user_id", "password", "is_superuser"}

// ReadUsers reads users from CSV with the columns user_id, password and is_superuser (true or false), in the form that
// EMQX takes as its bootstrap file too. Errors name the line and the rule.
func ReadUsers(from io.Reader) (*Users, error) {
	lines := csv.NewReader(from)
	lines.FieldsPerRecord = len(usersHead)
	head, err := lines.Read()
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read users: %w", err)
	}
	if strings.Join(head, ",") != strings.Join(usersHead, ",") {
		return nil, fmt.Errorf("line 1: must be %s", strings.Join(usersHead, ","))
	}
	users := &Users{byName: make(map[string]account)}
	for {
		fields, err := lines.Read()
		if errors.Is(err, io.EOF) {
			return users, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read users: %w", err) // it names the line
		}
		line, _ := lines.FieldPos(0)
		if err := users.add(fields[0], fields[1], fields[2]); err != nil {
			return nil, fmt.Errorf("line %d: %w", line, err)
		}
	}
}

func (u *Users) add(name, password, superuser string) error {
	if name == "" || strings.ContainsAny(name, "/+#\x00") {
		return fmt.Errorf("user_id: must not be empty nor contain / + #, is %q", name) // it becomes a level of a topic
	}
	if _, ok := u.byName[name]; ok {
		return fmt.Errorf("user_id: %q is there already", name)
	}
	if password == "" {
		return fmt.Errorf("password of %s: must not be empty", name)
	}
	if superuser != "true" && superuser != "false" {
		return fmt.Errorf("is_superuser of %s: must be true or false, is %q", name, superuser)
	}
	u.byName[name] = account{password: sha256.Sum256([]byte(password)), superuser: superuser == "true"}
	return nil
}

// with returns users of whom one more may do everything; for a nil *Users it is the only one.
func (u *Users) with(name, password string) *Users {
	more := &Users{byName: make(map[string]account)}
	if u != nil {
		maps.Copy(more.byName, u.byName)
	}
	more.byName[name] = account{password: sha256.Sum256([]byte(password)), superuser: true}
	return more
}

// knows reports whether that is a user's password. How long it takes says nothing about the password.
func (u *Users) knows(name string, password []byte) bool {
	if u == nil {
		return true
	}
	got := sha256.Sum256(password)
	a, ok := u.byName[name]
	return subtle.ConstantTimeCompare(a.password[:], got[:]) == 1 && ok
}

// allows reports whether a user may publish to a topic, or read a topic or filter.
func (u *Users) allows(name, topic string, write bool) bool {
	if u == nil || u.byName[name].superuser {
		return true
	}
	if write {
		return strings.HasPrefix(topic, "devices/"+name+"/")
	}
	if share, ok := strings.CutPrefix(topic, "$share/"); ok { // $share/{group}/{filter}
		_, topic, _ = strings.Cut(share, "/")
	}
	return strings.HasPrefix(topic, "devices/"+name+"/commands/")
}

// platformPrefix begins the client IDs of the platform itself, at any broker.
const platformPrefix = "cornjacket-"

// owns reports whether a user may connect under a client ID: a device under its name, or its name with a dash and more.
// Who connects under the ID of another takes over its session, and what waits in it. An ID that begins with the longer
// name of another user is that user's. The broker makes up an ID where there is none.
func (u *Users) owns(name, clientID string) bool {
	if u == nil || u.byName[name].superuser || clientID == "" {
		return true
	}
	if clientID != name && !strings.HasPrefix(clientID, name+"-") || strings.HasPrefix(clientID, platformPrefix) {
		return false
	}
	for end := len(name) + 1; end <= len(clientID); end++ {
		if end < len(clientID) && clientID[end] != '-' {
			continue
		}
		if _, other := u.byName[clientID[:end]]; other {
			return false
		}
	}
	return true
}

// OnConnectAuthenticate lets a client in that gives a user's name and password and a client ID that is this user's, and has
// no last will that this user may not publish: mochi asks nobody when it publishes one.
func (h *hook) OnConnectAuthenticate(_ *mqtt.Client, pk packets.Packet) bool {
	users, name := h.b.cfg.Users, string(pk.Connect.Username)
	if !users.knows(name, pk.Connect.Password) {
		h.b.sample.warn(h.b.log, "MQTT client refused: user or password is wrong", "client", pk.Connect.ClientIdentifier, "user", name)
		return false
	}
	if !users.owns(name, pk.Connect.ClientIdentifier) {
		h.b.sample.warn(h.b.log, "MQTT client refused: its client ID must be its user's name, or begin with that and a dash",
			"client", pk.Connect.ClientIdentifier, "user", name)
		return false
	}
	if pk.Connect.WillFlag && !users.allows(name, pk.Connect.WillTopic, true) {
		h.b.sample.warn(h.b.log, "MQTT client refused: it may not publish its last will", "client", pk.Connect.ClientIdentifier, "user", name,
			"topic", pk.Connect.WillTopic)
		return false
	}
	return true
}

// OnACLCheck reports whether a client may publish to a topic, subscribe to a filter or be sent a message. A publish that it
// may not make ends in a negative acknowledgement, or for MQTT 3.1.1, which has none, in a disconnection.
func (h *hook) OnACLCheck(cl *mqtt.Client, topic string, write bool) bool {
	name := string(cl.Properties.Username)
	ok := h.b.cfg.Users.allows(name, topic, write)
	if !ok && write {
		h.b.sample.warn(h.b.log, "MQTT publish refused", "client", cl.ID, "user", name, "topic", topic)
	}
	return ok
}
