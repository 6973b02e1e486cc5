package config

import "time"

// Doctor are the settings of `platform doctor`: those of [Run] that say where everything is.
type Doctor struct {
	Services       []string      `type:"services" var:"SERVICES" default:"${services}" placeholder:"NAME,..." help:"Services whose ports, databases and brokers to check, a comma-separated list. Default: all, ${services}."`
	Timeout        time.Duration `type:"duration" var:"DOCTOR_TIMEOUT" default:"5s" help:"How long each check may take, a duration."`
	JSON           bool          `name:"json" help:"Print one JSON document."`
	DeviceUsername string        `var:"DOCTOR_DEVICE_USERNAME" help:"User of a device at the MQTT broker, made for this: with it is tried whether a device can take over a session of the platform."`
	DevicePassword string        `var:"DOCTOR_DEVICE_PASSWORD" help:"Password of that device."`
	APIClient
	Addresses `group:"Addresses of the services (host:port):"`
	Databases `group:"Databases:"`
	Broker    `group:"Bus and MQTT:"`
	Topics    `group:"Topics (as they should be):"`
}

// Validate reports settings that do not go together.
func (d *Doctor) Validate() error { return d.checkBus() }
