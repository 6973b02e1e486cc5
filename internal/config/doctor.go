package config

import "time"

// Doctor are the settings of `platform doctor`: those of [Run] that say where everything is.
type Doctor struct {
	Services []string      `type:"services" var:"SERVICES" default:"${services}" placeholder:"NAME,..." help:"Services whose ports, databases and brokers to check, a comma-separated list. Default: all, ${services}."`
	Timeout  time.Duration `type:"duration" var:"DOCTOR_TIMEOUT" default:"5s" help:"How long each check may take, a duration."`
	JSON     bool          `name:"json" help:"Print one JSON document."`
	// CertFile and CAFile are as in [Health].
	CertFile  string `name:"tls-cert-file" var:"TLS_CERT_FILE" placeholder:"FILE" help:"Ask services over HTTPS, and take only the certificate in this file: the one that platform run is given."`
	CAFile    string `name:"tls-ca-file" var:"HEALTH_TLS_CA_FILE" placeholder:"FILE" help:"Ask services over HTTPS, and take a certificate that names the host and is from an authority in this file, PEM, in place of that of TLS_CERT_FILE."`
	Token     string `name:"api-token" var:"API_TOKEN" help:"Bearer token with the scope read, for the ledger; health needs none."`
	Addresses `group:"Addresses of the services (host:port):"`
	Databases `group:"Databases:"`
	Broker    `group:"Bus and MQTT:"`
	Topics    `group:"Topics (as they should be):"`
}

// Validate reports settings that do not go together.
func (d *Doctor) Validate() error { return d.checkBus() }
