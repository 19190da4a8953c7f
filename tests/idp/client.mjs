// What clients do: they find the provider through the API's own challenge, authenticate as it asks, and come back.
import * as oidc from 'openid-client';

/** A person in front of a login page, whose browser keeps cookies and follows redirects. */
export class Person {
  cookies = new Map();

  constructor(user) {
    this.user = user;
  }

  async visit(url, form) {
    const headers = { cookie: [...this.cookies].map(([name, value]) => `${name}=${value}`).join('; ') };
    const options = { redirect: 'manual', headers, ...(form && { method: 'POST', body: new URLSearchParams(form) }) };
    const response = await fetch(url, options);
    for (const line of response.headers.getSetCookie()) {
      const [, name, value] = line.match(/^([^=]+)=([^;]*)/);
      if (value) this.cookies.set(name, value);
      else this.cookies.delete(name);
    }
    return response;
  }

  /** Logs in until the client's callback is reached, giving a code where the page is shown again without one. */
  async authenticate(url, callback) {
    let pages = 0;
    for (let steps = 0; steps < 20; steps++) {
      const response = await this.visit(url);
      const location = response.headers.get('location');
      if (!location) {
        pages++;
        const done = await this.visit(url, { user: this.user, code: this.nextCode() });
        url = new URL(done.headers.get('location'), url);
      } else {
        url = new URL(location, url);
      }
      if (url.href.startsWith(callback)) return { url, pages };
    }
    throw new Error('the login never ends');
  }

  /** The codes that will be given, one per page; none by default. */
  codes = [];
  nextCode() {
    return this.codes.shift() ?? '';
  }
}

export class Client {
  static async of(issuer, callback, resource) {
    const config = await oidc.discovery(new URL(issuer), 'app', undefined, oidc.None(), {
      execute: [oidc.allowInsecureRequests],
    });
    return Object.assign(new Client(), { config, callback, resource });
  }

  /** A token for what was asked, by authorization code and PKCE. */
  async token(person, asked = {}, DPoP) {
    const verifier = oidc.randomPKCECodeVerifier();
    const url = oidc.buildAuthorizationUrl(this.config, {
      redirect_uri: this.callback,
      scope: 'openid read pay',
      resource: this.resource,
      code_challenge: await oidc.calculatePKCECodeChallenge(verifier),
      code_challenge_method: 'S256',
      ...asked,
    });
    const { url: back, pages } = await person.authenticate(url, this.callback);
    const checks = { pkceCodeVerifier: verifier };
    const tokens = await oidc.authorizationCodeGrant(this.config, back, checks, { resource: this.resource }, { DPoP });
    return { token: tokens.access_token, pages };
  }

  /** The status, and the parsed challenges of a 401. */
  async call(token, method, url, DPoP) {
    try {
      const response = await oidc.fetchProtectedResource(this.config, token, new URL(url), method, undefined, undefined, { DPoP });
      return { status: response.status, body: await response.text(), challenges: [] };
    } catch (error) {
      if (!(error instanceof oidc.WWWAuthenticateChallengeError)) throw error;
      return { status: error.status, challenges: error.cause, response: error.response };
    }
  }

  async dpop() {
    return oidc.getDPoPHandle(this.config, await oidc.randomDPoPKeyPair('ES256'));
  }
}

/** What a challenge asks the provider for. */
export function asked({ parameters }) {
  const { acr_values, max_age } = parameters;
  return { ...(acr_values && { acr_values }), ...(max_age && { max_age }) };
}
