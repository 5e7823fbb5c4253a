// Package hook answers the brokers and proxies of others, and tells them whom to
// disconnect.
//
// EMQX, RabbitMQ, VerneMQ, nginx, Envoy, and whatever speaks the generic JSON API,
// ask over HTTP: [Server] is the handler. NATS asks over NATS: [Callout] answers
// there. Each question of who may come in becomes one [countersign.Connection] and
// is decided by the [countersign.Gatekeeper]. Later questions about topics are
// answered from the permissions that came with that verdict.
//
// A broker keeps a session open when its device loses its identity. So [Kicker]
// hears of each loss and has the broker end the sessions, again and again until
// the broker says that they are gone. Mosquitto asks nobody; it gets a fresh CRL
// from [CRLFile] instead.
//
// Whoever asks must be a configured [Hook] and show its secret, its certificate or
// its address. Whatever goes wrong on the way is answered with the protocol's own no.
package hook
