// Node's parser (llhttp) as a server and as a client, one JSON line on stdout for each event.
'use strict';
const http = require('http');
const readline = require('readline');

const say = (event) => process.stdout.write(JSON.stringify(event) + '\n');
const options = { insecureHTTPParser: false, keepAliveTimeout: 60000 };
const server = http.createServer(options, (request, response) => {
  let length = 0;
  request.on('data', (piece) => { length += piece.length; });
  request.on('end', () => {
    say({ request: `${request.method} ${request.url} ${length}` });
    response.end();
  });
  request.on('error', () => say({ request: `${request.method} ${request.url} bad` }));
});
// A request that is refused gets Node's own answer (400 or 431) unless somebody listens here.
server.on('connect', (request, socket) => {
  say({ request: `CONNECT ${request.url} 0` });
  socket.end('HTTP/1.1 200 OK\r\n\r\n');
});
server.listen(0, '127.0.0.1', () => say({ port: server.address().port }));

// `{"port": …, "method": …}`: one request to that port, and what is made of the answer.
readline.createInterface({ input: process.stdin }).on('line', (line) => {
  const { port, method } = JSON.parse(line);
  const interim = [];
  let answered = false;
  const answer = (verdict) => {
    if (!answered) say({ response: [...interim, verdict].join(' + ') });
    answered = true;
  };
  const path = method === 'CONNECT' ? 'a:80' : '/';
  const request = http.request({ port, method, path, headers: { host: 'a' }, agent: false });
  request.on('information', (info) => interim.push(String(info.statusCode)));
  request.on('continue', () => interim.includes('100') || interim.push('100'));
  request.on('connect', (response, socket) => { answer(`${response.statusCode} 0`); socket.destroy(); });
  request.on('upgrade', (response, socket) => { answer(`${response.statusCode} 0`); socket.destroy(); });
  request.on('response', (response) => {
    let length = 0;
    response.on('data', (piece) => { length += piece.length; });
    response.on('end', () => answer(`${response.statusCode} ${response.complete ? length : 'bad'}`));
    response.on('error', () => answer(`${response.statusCode} bad`));
  });
  request.on('error', () => answer('refuses'));
  request.end();
});
