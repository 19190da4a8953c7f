// Access tokens of an issuer, and real logout tokens of npm's oidc-provider for their sessions.
//
// node logout.mjs '{"issuer": "…", "jwk": {}, "tokens": [{"sub": "alice", "sid": "s1"}], "audience": "…"}'     one token for each, in lines
// node logout.mjs '{"issuer": "…", "jwk": {}, "logout": {"sub": "alice", "sid": "s1"}, "to": "http://…"}'       "sent", or the provider's error
import { SignJWT, importJWK } from 'jose';
import Provider from 'oidc-provider';

const { issuer, jwk, tokens, audience, logout, to } = JSON.parse(process.argv[2]);

if (tokens) {
  const key = await importJWK(jwk, jwk.alg);
  for (const claims of tokens) {
    const token = new SignJWT(claims).setProtectedHeader({ alg: jwk.alg, kid: jwk.kid }).setIssuer(issuer).setAudience(audience);
    console.log(await token.setIssuedAt().setExpirationTime('10m').sign(key));
  }
} else {
  const provider = new Provider(issuer, {
    jwks: { keys: [jwk] },
    // Its guard refuses loopback addresses, where the hub of the tests is.
    fetch: (url, { dispatcher: _, ...options } = {}) => globalThis.fetch(url, options),
    features: { backchannelLogout: { enabled: true }, devInteractions: { enabled: false } },
    clients: [
      {
        client_id: 'shop',
        client_secret: 'only for tests',
        redirect_uris: ['http://127.0.0.1/callback'],
        grant_types: ['authorization_code'],
        id_token_signed_response_alg: jwk.alg,
        backchannel_logout_uri: to,
        backchannel_logout_session_required: true,
      },
    ],
  });
  const client = await provider.Client.find('shop');
  await client.backchannelLogout(logout.sub, logout.sid).then(
    () => console.log('sent'),
    (error) => console.log(`${error.message} ${error.cause?.message ?? ''}`),
  );
}
process.exit(0);
