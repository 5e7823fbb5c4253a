// A device on MQTT.js, with a kept session.
//
//     node kept.js LIBRARY LEVEL HOST PORT ROOTS CERTIFICATE KEY CLIENT TOPIC COUNT
//
// It subscribes to TOPIC with QoS 2 and prints COUNT payloads, one a line; with 0 it
// subscribes and leaves.
'use strict'

const fs = require('node:fs')
const [library, level, host, port, roots, cert, key, clientId, topic, count] = process.argv.slice(2)
const mqtt = require(library)

const client = mqtt.connect({
  protocol: 'mqtts',
  host,
  port: Number(port),
  ca: fs.readFileSync(roots),
  cert: fs.readFileSync(cert),
  key: fs.readFileSync(key),
  clientId,
  protocolVersion: Number(level),
  clean: false,
  resubscribe: false,
  reconnectPeriod: 0,
  properties: level === '5' ? { sessionExpiryInterval: 3600 } : undefined
})
let n = 0
client.on('error', (e) => { console.error(e.message); process.exit(1) })
client.on('connect', () => {
  if (Number(count) > 0) return
  client.subscribe(topic, { qos: 2 }, (err, granted) => {
    if (err || granted[0].qos !== 2) { console.error(err, granted); process.exit(1) }
    client.end()
  })
})
client.on('message', (_, payload) => {
  console.log(payload.toString())
  if (++n === Number(count)) client.end()
})
