package main

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
)

const (
	emqxACL       = "/opt/emqx/etc/acl.conf"
	emqxUsers     = "/opt/emqx/etc/users.csv"
	emqxData      = "/opt/emqx/data/"
	mosquittoConf = "/tmp/mosquitto.conf"
	mosquittoACL  = "/tmp/mosquitto.acl"
	mosquittoPass = "/tmp/mosquitto.passwd"
)

// emqx stands in for EMQX with a Mosquitto that is told the same: sessions without a bound that outlast a restart, and
// users and rules as EMQX's own files say them, but for client IDs, which Mosquitto does not compare. `emqx ctl status` is how the health check asks for it.
func emqx(ctx context.Context, args []string) error {
	if starts(args, "ctl", "status") {
		conn, err := (&net.Dialer{Timeout: askTimeout}).DialContext(ctx, "tcp", "127.0.0.1:1883")
		if err != nil {
			return fmt.Errorf("not running: %w", err)
		}
		return conn.Close()
	}
	if !starts(args, "foreground") {
		return fmt.Errorf("unknown command %q", strings.Join(args, " "))
	}
	conf := `listener 1883
user root
persistence true
persistence_location ` + emqxData + `
autosave_interval 1
max_queued_messages 0
max_inflight_messages 2000
max_packet_size 1048576
persistent_client_expiration 7d
acl_file ` + mosquittoACL + `
log_dest stderr
`
	text, err := os.ReadFile(emqxACL)
	if err != nil {
		return fmt.Errorf("read rules: %w", err)
	}
	rules, err := mosquittoRules(string(text))
	if err != nil {
		return fmt.Errorf("%s: %w", emqxACL, err)
	}
	if err := os.WriteFile(mosquittoACL, []byte(rules), 0o600); err != nil {
		return fmt.Errorf("write rules: %w", err)
	}
	if os.Getenv("EMQX_AUTHENTICATION__2__ENABLE") == "true" {
		if err := mosquittoPasswords(ctx); err != nil {
			return err
		}
		conf += "allow_anonymous false\npassword_file " + mosquittoPass + "\n"
	} else {
		conf += "allow_anonymous true\n"
	}
	if err := os.WriteFile(mosquittoConf, []byte(conf), 0o600); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	const program = "/usr/sbin/mosquitto"
	if err := syscall.Exec(program, []string{program, "-c", mosquittoConf}, os.Environ()); err != nil {
		return fmt.Errorf("start mosquitto: %w", err)
	}
	return nil
}

var (
	aclComment = regexp.MustCompile(`(?m)^\s*%.*$`)
	aclRule    = regexp.MustCompile(`^\{allow, (?:all|\{username, "([^"]*)"\}), (publish|subscribe|all), \[([^\]]*)\]\}$`)
)

// mosquittoRules translates EMQX's rules. Those that it can't tell are an error, so that a test does not pass on rules
// that it does not have.
func mosquittoRules(text string) (string, error) {
	var everyone, named strings.Builder // what holds for all must stand before the first user
	for rule := range strings.SplitSeq(aclComment.ReplaceAllString(text, ""), ".\n") {
		switch rule = strings.TrimSpace(rule); rule {
		case "", "{deny, all}": // deny is what Mosquitto does without a rule
			continue
		case "{allow, all}":
			everyone.WriteString("topic readwrite #\n")
			continue
		}
		parts := aclRule.FindStringSubmatch(rule)
		if parts == nil {
			return "", fmt.Errorf("this rule has no counterpart: %s", rule)
		}
		access := map[string]string{"publish": "write", "subscribe": "read", "all": "readwrite"}[parts[2]]
		if parts[1] != "" {
			fmt.Fprintf(&named, "user %s\n", parts[1])
		}
		for topic := range strings.SplitSeq(parts[3], ",") {
			topic = strings.Trim(strings.TrimSpace(topic), `"`)
			switch {
			case parts[1] != "":
				fmt.Fprintf(&named, "topic %s %s\n", access, topic)
			default:
				fmt.Fprintf(&everyone, "pattern %s %s\n", access, strings.ReplaceAll(topic, "${username}", "%u"))
			}
		}
	}
	return everyone.String() + named.String(), nil
}

// mosquittoPasswords translates EMQX's file of users; hashing is what mosquitto_passwd does.
func mosquittoPasswords(ctx context.Context) error {
	file, err := os.Open(emqxUsers)
	if err != nil {
		return fmt.Errorf("read users: %w", err)
	}
	defer file.Close() //nolint:errcheck // nothing was written
	lines, err := csv.NewReader(file).ReadAll()
	if err != nil {
		return fmt.Errorf("read %s: %w", emqxUsers, err)
	}
	if len(lines) == 0 || strings.Join(lines[0], ",") != "user_id,password,is_superuser" {
		return errors.New(emqxUsers + ": the first line must be user_id,password,is_superuser")
	}
	var users strings.Builder
	for _, user := range lines[1:] {
		fmt.Fprintf(&users, "%s:%s\n", user[0], user[1])
	}
	if err := os.WriteFile(mosquittoPass, []byte(users.String()), 0o600); err != nil {
		return fmt.Errorf("write users: %w", err)
	}
	if out, err := exec.CommandContext(ctx, "mosquitto_passwd", "-U", mosquittoPass).CombinedOutput(); err != nil {
		return fmt.Errorf("hash passwords: %w: %s", err, out)
	}
	return nil
}
