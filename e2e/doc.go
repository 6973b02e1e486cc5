// Package e2e holds the black-box tests of the platform: they start the built program as a user does, and talk to it
// with the clients that users have. It has no code of its own.
//
// By default they build cmd/platform once and start `platform dev`, on free ports and with folders of their own. With
// E2E_LIVE=1 they start nothing and test the platform that is running on this machine, however it was started, with
// those of them that only talk to it. Where it listens is said by
//
//	E2E_INGESTION_URL, E2E_QUERY_URL, E2E_EVENTHANDLER_URL, E2E_RELAY_URL   http://127.0.0.1:8080, :8081, :8084, :8086
//	E2E_GATEWAY_URL                                                         none; stands before both APIs if it is given
//	E2E_MQTT_ADDR                                                           127.0.0.1:1883
//
// and, for what is looked up behind its back, by its own variables REDPANDA_BROKERS, INGESTION_DATABASE_URL and
// EVENTHANDLER_DATABASE_URL with the platform's defaults. IDs are new in each run, so data that is there already does
// not matter, and what a run stores stays.
package e2e
