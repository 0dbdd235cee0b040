// Dials a gridnode, prints each state record it hears as a line of JSON, and answers each with one of its own.
//
//     node --import ./node20.mjs peer.mjs ADDRESS TOPIC
//
// The record is the MessagePack array of docs/wire.md, "State record".
import { gossipsub } from '@libp2p/gossipsub'
import { identify } from '@libp2p/identify'
import { noise } from '@libp2p/noise'
import { tcp } from '@libp2p/tcp'
import { yamux } from '@libp2p/yamux'
import { decode, encode } from '@msgpack/msgpack'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'

const [address, topic] = process.argv.slice(2)
const say = (what) => console.log(JSON.stringify(what))

const node = await createLibp2p({
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: { identify: identify(), pubsub: gossipsub({ emitSelf: false }) }
})

node.services.pubsub.addEventListener('message', async ({ detail }) => {
  const [version, origin, epoch, sequence, backlog, slots] = decode(detail.data)
  say({ heard: { version, node: origin, epoch, sequence, backlog, slots, signer: detail.from.toString() } })
  const own = [1, node.peerId.toString(), 1, sequence, 2.5, 3, 0.25, 1.5, 0, 1024, false, 0, new Uint8Array(8)]
  await node.services.pubsub.publish(topic, encode(own, { forceIntegerToFloat: false }))
})
node.services.pubsub.subscribe(topic)
const connection = await node.dial(multiaddr(address))
say({ dialled: connection.remotePeer.toString(), muxer: connection.multiplexer, encryption: connection.encryption })

process.stdin.resume()
process.stdin.on('end', async () => { await node.stop(); process.exit(0) })
