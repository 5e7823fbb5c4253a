// Package mqtt is the gateway for MQTT devices: our own edge in front of an
// engine that carries the messages.
//
// It reads CONNECT (MQTT 3.1.1 and 5), asks the Gatekeeper, answers a refusal
// with the exact CONNACK code, and then stands between device and engine frame
// by frame: each PUBLISH, will and SUBSCRIBE is held against the session's
// permissions, each message on its way down too, and nothing passes once the
// session is cut.
//
// Two engines exist. [NATS] is embedded, speaks MQTT 3.1.1 and serves MQTT 5
// clients through a shim whose CONNACK says what is missing. [Broker] is any MQTT
// broker over TCP; MQTT 5 passes through to it untouched, except for what
// the permissions refuse.
//
// Left out: MQTT 3.1 (answered with CONNACK 1), enhanced authentication, MQTT over
// WebSocket. docs/protocols/mqtt.md has the tables.
package mqtt
