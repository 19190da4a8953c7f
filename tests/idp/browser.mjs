// A person with Chromium, and the team's login application, which is a client of the provider.
//
// node browser.mjs '{"issuer": "…", "login": 1, "api": "http://127.0.0.1:2"}'
import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import { chromium } from 'playwright-core';
import * as oidc from 'openid-client';

const { issuer, login, api } = JSON.parse(process.argv[2]);
const own = `http://127.0.0.1:${login}`;
const config = await oidc.discovery(new URL(issuer), 'app', undefined, oidc.None(), {
  execute: [oidc.allowInsecureRequests],
});

// The login application: it asks the provider for what the redirect says, and keeps the token in a cookie.
const asked = [];
const pending = new Map();
createServer(async (request, response) => {
  const url = new URL(request.url, own);
  if (url.pathname === '/login') {
    asked.push(Object.fromEntries(url.searchParams));
    const [state, verifier] = [oidc.randomState(), oidc.randomPKCECodeVerifier()];
    pending.set(state, { verifier, back: url.searchParams.get('return_to') });
    const parameters = {
      redirect_uri: `${own}/callback`,
      scope: 'openid read',
      resource: api,
      state,
      code_challenge: await oidc.calculatePKCECodeChallenge(verifier),
      code_challenge_method: 'S256',
    };
    for (const name of ['acr_values', 'max_age']) {
      if (url.searchParams.has(name)) parameters[name] = url.searchParams.get(name);
    }
    return response.writeHead(302, { location: oidc.buildAuthorizationUrl(config, parameters).href }).end();
  }
  if (url.pathname === '/callback') {
    const state = url.searchParams.get('state');
    const { verifier, back } = pending.get(state);
    const checks = { pkceCodeVerifier: verifier, expectedState: state };
    const tokens = await oidc.authorizationCodeGrant(config, url, checks, { resource: api });
    const cookie = `session=${tokens.access_token}; Path=/; HttpOnly; SameSite=Lax`;
    return response.writeHead(302, { location: back, 'set-cookie': cookie }).end();
  }
  response.writeHead(404).end();
}).listen(login, '127.0.0.1');

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--no-sandbox', '--disable-gpu'],
});
try {
  const page = await browser.newPage();
  const logIn = async (code) => {
    await page.getByLabel('Name').fill('eve');
    await page.getByLabel('Code').fill(code);
    await page.getByRole('button').click();
    await page.waitForURL(`${api}/**`);
  };
  await page.goto(`${api}/read?x=1&y=2`);
  await logIn('');
  assert.equal(page.url(), `${api}/read?x=1&y=2`);
  assert.equal(JSON.parse(await page.locator('body').innerText()).path, '/read?x=1&y=2');
  assert.deepEqual(asked.shift(), { return_to: `${api}/read?x=1&y=2` });
  console.log('- without a token the login page comes, and then the page that was asked for');

  const script = await page.evaluate(async () => (await fetch('/page', { redirect: 'manual' })).status);
  assert.equal(script, 401);
  const post = await page.evaluate(async () => (await fetch('/page', { method: 'POST' })).status);
  assert.equal(post, 401);
  console.log('- scripts are challenged and not redirected');

  await page.goto(`${api}/page`);
  await logIn('123456');
  assert.equal(page.url(), `${api}/page`);
  assert.match(asked.shift().acr_values, /^mfa/);
  assert.equal(asked.length, 0);
  console.log('- a page that demands more leads to the login, which asks for it, and back');

  // Somebody else, who comes straight to what demands a level and freshness: one login is enough.
  const other = await (await browser.newContext()).newPage();
  const logInThere = async (page, code) => {
    await page.getByLabel('Name').fill('fay');
    await page.getByLabel('Code').fill(code);
    await page.getByRole('button').click();
    await page.waitForURL((url) => url.href.startsWith(api) || url.href.startsWith(issuer));
  };
  await other.goto(`${api}/strict`);
  await logInThere(other, '123456');
  assert.equal(other.url(), `${api}/strict`);
  const [once, ...more] = asked.splice(0);
  assert.match(once.acr_values, /^mfa/);
  assert.equal(once.max_age, '60');
  assert.equal(more.length, 0);
  console.log('- a level and an age are asked for in one login');

  // The provider never reaches what /never demands.
  let told = '';
  for (let attempt = 0; attempt < 6 && !told; attempt++) {
    await other.goto(`${api}/never`);
    const text = await other.locator('body').innerText();
    if (text.includes('Signing in did not help')) told = text;
    else await logInThere(other, '123456');
  }
  assert.match(told, /step_up_not_satisfiable/);
  console.log('- a loop of logins ends in a page that says why');
} finally {
  await browser.close();
}
process.exit(0);
