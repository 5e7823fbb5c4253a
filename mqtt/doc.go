// Package mqtt is the gateway for MQTT devices: our own edge in front of an
// engine that carries the messages.
//
// It reads CONNECT (MQTT 3.1.1 and 5), asks the Gatekeeper, answers a refusal
// with the exact CONNACK code, and then stands between device and engine frame
// by frame: each PUBLISH, will and SUBSCRIBE is held against the session's
// permissions, each message on its way down too, and nothing passes once the
// session is cut. Enhanced authentication (MQTT 5, 4.12) is the gateway's, so is
// the inbox of each session, and the sender's name in what goes to an MQTT 5 engine.
//
// Browsers come by MQTT over WebSocket, on a listener of its own that asks for no
// client certificate; the session is the same.
//
// Two engines exist. [NATS] is embedded, speaks MQTT 3.1.1 and serves MQTT 5
// clients through a shim whose CONNACK says what is missing. [Broker] is any MQTT
// broker over TCP; MQTT 5 passes through to it untouched, except for what
// the permissions refuse.
//
// Left out: MQTT 3.1 (answered with CONNACK 1). docs/protocols/mqtt.md has the
// tables, and each statement of the two standards with the test that shows it.
package mqtt
