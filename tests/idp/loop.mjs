// The loop, from a request without a token to an answer, through the real Envoy and a real provider.
//
// node loop.mjs '{"api": "http://127.0.0.1:1", "callback": "http://127.0.0.1:2/callback"}'
import assert from 'node:assert/strict';
import { Client, Person, asked } from './client.mjs';

const { api, callback } = JSON.parse(process.argv[2]);
const step = (words) => console.log(`- ${words}`);

// Nobody told the client where to authenticate: the API's own challenge does (RFC 9728).
const first = await fetch(`${api}/read`);
assert.equal(first.status, 401);
const metadata = first.headers.get('www-authenticate').match(/resource_metadata="([^"]+)"/)[1];
const { resource, authorization_servers: [issuer] } = await (await fetch(metadata)).json();
assert.equal(resource, api);
step('the challenge leads to the metadata, and those to the provider');

const client = await Client.of(issuer, callback, resource);
for (const [name, scheme, makeDPoP] of [
  ['ann', 'bearer', () => undefined],
  ['bob', 'dpop', () => client.dpop()],
]) {
  const person = new Person(name);
  const DPoP = await makeDPoP();
  const { token: weak } = await client.token(person, {}, DPoP);
  const read = await client.call(weak, 'GET', `${api}/read`, DPoP);
  assert.equal(read.status, 200, `${scheme}: ${JSON.stringify(read)}`);

  const refused = await client.call(weak, 'POST', `${api}/pay`, DPoP);
  assert.equal(refused.status, 401);
  const [challenge] = refused.challenges;
  assert.equal(challenge.scheme, scheme);
  assert.equal(challenge.parameters.error, 'insufficient_user_authentication');
  assert.match(challenge.parameters.acr_values, /^mfa/);
  step(`${scheme}: one factor may read, and is asked for more to pay`);

  // The page is shown although a session is there, and again when no code is given.
  person.codes = ['', '123456'];
  const { token: strong, pages } = await client.token(person, asked(challenge), DPoP);
  assert.equal(pages, 2);
  assert.equal((await client.call(strong, 'POST', `${api}/pay`, DPoP)).status, 200);
  step(`${scheme}: with two factors it pays`);

  await new Promise((resolve) => setTimeout(resolve, 3_100));
  const old = await client.call(strong, 'POST', `${api}/fresh`, DPoP);
  assert.equal(old.status, 401);
  assert.equal(old.challenges[0].parameters.max_age, '2');
  const { token: fresh } = await client.token(person, asked(old.challenges[0]), DPoP);
  assert.equal((await client.call(fresh, 'POST', `${api}/fresh`, DPoP)).status, 200);
  step(`${scheme}: an old authentication is asked for again, and is then fresh`);

  if (DPoP) {
    const stolen = await fetch(`${api}/read`, { headers: { authorization: `Bearer ${weak}` } });
    assert.equal(stolen.status, 401);
    const another = await client.call(weak, 'GET', `${api}/read`, await client.dpop());
    assert.equal(another.status, 401);
    step('a bound token is worth nothing without its key');
  }
}

// A person who never gives a second factor: the provider ends with what there is, and the client is told to stop.
const carl = new Person('carl');
const answers = [];
for (let attempt = 0; attempt < 5; attempt++) {
  const { token } = await client.token(carl, { prompt: 'login' });
  const { status, body } = await client.call(token, 'POST', `${api}/pay`);
  answers.push(status);
  if (status === 403) assert.equal(JSON.parse(body).reason, 'step_up_not_satisfiable');
}
// The first token was no answer to a challenge.
assert.deepEqual(answers, [401, 401, 401, 403, 403]);
step('who gets nowhere is told to stop');
