// An OpenID provider for tests: the real protocol, and a login page that asks for a name and, if the person likes, a code.
//
// node provider.mjs '{"port": 1, "jwks": {"keys": []}, "callbacks": ["http://127.0.0.1:2/callback"]}'
import { createServer } from 'node:http';
import Provider, { interactionPolicy } from 'oidc-provider';

const { port, jwks, callbacks, format = 'jwt' } = JSON.parse(process.argv[2]);
const issuer = `http://127.0.0.1:${port}`;
const scopes = 'read pay';

const policy = interactionPolicy.base();
policy.get('login').checks.add(
  new interactionPolicy.Check('acr_not_met', 'a stronger authentication is asked for', (ctx) => {
    const wanted = ctx.oidc.params.acr_values?.split(' ');
    const isMet = !wanted || wanted.includes(ctx.oidc.session.acr);
    return isMet ? interactionPolicy.Check.NO_NEED_TO_PROMPT : interactionPolicy.Check.REQUEST_PROMPT;
  }),
);

const provider = new Provider(issuer, {
  jwks,
  acrValues: ['pwd', 'mfa'],
  clients: [
    {
      client_id: 'app',
      token_endpoint_auth_method: 'none',
      application_type: 'web',
      redirect_uris: callbacks,
      grant_types: ['authorization_code', 'refresh_token'],
      response_types: ['code'],
      id_token_signed_response_alg: 'ES256',
    },
    // The API, which asks about tokens that it cannot read.
    {
      client_id: 'api',
      client_secret: 'only for tests',
      redirect_uris: [],
      grant_types: [],
      response_types: [],
      id_token_signed_response_alg: 'ES256',
    },
  ],
  cookies: { keys: ['only for tests'] },
  features: {
    devInteractions: { enabled: false },
    dPoP: { enabled: true },
    introspection: { enabled: true },
    revocation: { enabled: true },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo: (_ctx, resource) => ({
        scope: scopes,
        audience: resource,
        accessTokenFormat: format,
        ...(format === 'jwt' && { jwt: { sign: { alg: 'ES256' } } }),
      }),
      useGrantedResource: () => true,
    },
  },
  interactions: { url: (_ctx, interaction) => `/interaction/${interaction.uid}`, policy },
  findAccount: (_ctx, sub) => ({ accountId: sub, claims: () => ({ sub }) }),
  issueRefreshToken: () => true,
  // What was asked for is given: consent is not what these tests are about.
  async loadExistingGrant(ctx) {
    const { client, session, params } = ctx.oidc;
    const grant = new provider.Grant({ clientId: client.clientId, accountId: session.accountId });
    grant.addOIDCScope('openid offline_access');
    for (const resource of [params.resource].flat().filter(Boolean)) grant.addResourceScope(resource, scopes);
    await grant.save();
    return grant;
  },
  extraTokenClaims(ctx) {
    const { AuthorizationCode: code, RefreshToken: refresh } = ctx.oidc.entities;
    const { acr, amr, authTime } = code ?? refresh ?? {};
    return { acr, amr, auth_time: authTime };
  },
});
provider.on('server_error', (_ctx, error) => console.error(error));

const PAGE = `<!doctype html><title>Login</title><form method="post">
<input name="user" aria-label="Name"> <input name="code" aria-label="Code"> <button>Log in</button></form>`;

const answer = provider.callback();
createServer(async (request, response) => {
  if (!request.url.startsWith('/interaction/')) return answer(request, response);
  if (request.method === 'GET') return response.setHeader('content-type', 'text/html').end(PAGE);
  let body = '';
  for await (const part of request) body += part;
  const form = new URLSearchParams(body);
  const [acr, amr] = form.get('code') ? ['mfa', ['pwd', 'otp']] : ['pwd', ['pwd']];
  const login = { accountId: form.get('user'), acr, amr };
  await provider.interactionFinished(request, response, { login }, { mergeWithLastSubmission: false });
}).listen(port, '127.0.0.1', () => console.log('ready'));
