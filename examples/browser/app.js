// One page, one device: sign in, see the valve, open and close it.
'use strict'

const $ = (id) => document.getElementById(id)
let client

// Seconds after which the client shows the server that it is there. mqtt.js counts
// them in a worker made of a blob, so that a tab in the background goes on; the page's
// policy must allow it (worker-src blob:), or no ping is ever sent.
const keepalive = Number(new URLSearchParams(location.search).get('keepalive')) || 60

// exchange gives an access token for the device: short-lived, and good for nothing else.
// A real application sends the ID token of its identity provider here.
async function exchange (server, device, operatorToken) {
  const answer = await fetch(`https://${server}/token`, {
    method: 'POST',
    body: new URLSearchParams({
      grant_type: 'urn:ietf:params:oauth:grant-type:token-exchange',
      subject_token_type: 'urn:ietf:params:oauth:token-type:access_token',
      subject_token: operatorToken,
      scope: `device:${device}`
    })
  })
  const body = await answer.json()
  if (!answer.ok) throw new Error(body.error_description)
  return body.access_token
}

function show (state, connected) {
  $('state').textContent = state
  $('open').disabled = $('close').disabled = !connected
}

function connect (server, device, accessToken) {
  client = mqtt.connect(`wss://${server}/mqtt`, {
    protocolVersion: 5,
    username: 'browser',
    password: accessToken,
    reconnectPeriod: 1000,
    keepalive,
    properties: { requestResponseInformation: true }
  })
  let inbox
  client.on('connect', (ack) => {
    // Answers come to a topic that belongs to this session alone.
    inbox = ack.properties?.responseInformation
    client.subscribe([`devices/${device}/up/#`, ...(inbox ? [inbox + '#'] : [])])
    show('connected', true)
  })
  client.on('message', (topic, payload) => {
    if (topic === `devices/${device}/up/valve` || topic.startsWith(inbox)) $('valve').textContent = payload.toString()
  })
  client.on('disconnect', (packet) => show(`ended: ${packet.properties?.reasonString ?? 'no reason given'}`, false))
  client.on('close', () => { if ($('state').textContent === 'connected') show('closed', false) })
  client.on('error', (e) => { show(`refused: ${e.message}`, false); client.end(true) })
  const command = (word) => () => {
    client.publish(`devices/${device}/down/valve`, word, { qos: 1, properties: inbox ? { responseTopic: inbox + 'valve' } : {} })
  }
  $('open').onclick = command('open')
  $('close').onclick = command('close')
}

$('sign-in').onsubmit = async (event) => {
  event.preventDefault()
  client?.end(true)
  show('signing in', false)
  try {
    const server = $('server').value
    const device = $('device').value
    connect(server, device, await exchange(server, device, $('token').value))
    $('token').value = ''
  } catch (e) {
    show(`not signed in: ${e.message}`, false)
  }
}
