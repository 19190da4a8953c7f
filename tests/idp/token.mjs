// One access token, as a client gets it: node token.mjs '{"issuer": "…", "callback": "…", "api": "…"}'
import { Client, Person } from './client.mjs';

const { issuer, callback, api } = JSON.parse(process.argv[2]);
const client = await Client.of(issuer, callback, api);
console.log((await client.token(new Person('dora'))).token);
