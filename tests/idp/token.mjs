// Access tokens, as a client gets them, one unless `count` says more: node token.mjs '{"issuer": "…", "callback": "…", "api": "…"}'
import { Client, Person } from './client.mjs';

const { issuer, callback, api, count = 1 } = JSON.parse(process.argv[2]);
const client = await Client.of(issuer, callback, api);
for (let made = 0; made < count; made++) {
  console.log((await client.token(new Person('dora'))).token);
}
