// Package mqtt is the gateway for MQTT devices: an edge of our own in front of what
// carries the messages.
//
// It reads CONNECT (MQTT 3.1, 3.1.1 and 5), asks the Gatekeeper, answers a refusal
// with the exact CONNACK code, and then judges frame by frame: each PUBLISH, will and
// SUBSCRIBE is held against the session's permissions, each message on its way down too,
// and nothing passes once the session is cut. Enhanced authentication (MQTT 5, 4.12) is
// the gateway's, so are the inbox of each session and the sender's name.
//
// Browsers come by MQTT over WebSocket, on a listener of its own that asks for no
// client certificate; the session is the same.
//
// Behind a session is one of two backs. The default is the broker core of this process,
// package broker: the gateway decodes and encodes, and one goroutine serves a session.
// With a [Relay] it is any MQTT broker over TCP: MQTT 5 and 3.1.1 pass through, except
// for what the permissions refuse.
//
// docs/protocols/mqtt.md has the tables, and each statement of the two standards with the
// test that shows it.
package mqtt
