// The real oidc-provider with one app, for `python -m tests.real --only oauth`: PKCE is required, refresh tokens rotate,
// and one that is used twice ends its grant. Whoever comes is signed in and consents: nobody is at this browser.
// Arguments: the package's folder, a port, the life of an access token in seconds, redirects.

import { pathToFileURL } from "node:url";

const [folder, port, seconds, ...redirects] = process.argv.slice(2);
const { Provider } = await import(pathToFileURL(`${folder}/lib/index.js`));

const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [
    {
      client_id: "app_of_acme",
      client_secret: process.env.CLIENT_SECRET,
      grant_types: ["authorization_code", "refresh_token"],
      redirect_uris: redirects,
      application_type: "native",
      token_endpoint_auth_method: "client_secret_basic",
    },
  ],
  cookies: { keys: ["of these checks only"] },
  features: { devInteractions: { enabled: false }, revocation: { enabled: true } },
  findAccount: (_context, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
  interactions: { url: (_context, interaction) => `/interaction/${interaction.uid}` },
  pkce: { required: () => true },
  rotateRefreshToken: true,
  scopes: ["openid", "offline_access"],
  ttl: { AccessToken: Number(seconds), Grant: 3600, Interaction: 3600, RefreshToken: 3600, Session: 3600 },
});

provider.use(async (context, next) => {
  if (!context.path.startsWith("/interaction/")) return next();
  const { params, prompt, session } = await provider.interactionDetails(context.req, context.res);
  if (prompt.name === "login") {
    const result = { login: { accountId: "ann" } };
    return provider.interactionFinished(context.req, context.res, result, { mergeWithLastSubmission: false });
  }
  const grant = new provider.Grant({ accountId: session.accountId, clientId: params.client_id });
  grant.addOIDCScope(params.scope);
  const result = { consent: { grantId: await grant.save() } };
  return provider.interactionFinished(context.req, context.res, result, { mergeWithLastSubmission: true });
});

provider.listen(Number(port), "127.0.0.1");
