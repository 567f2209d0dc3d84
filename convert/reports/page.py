"""A model as one HTML page: it asks no network, runs no foreign script, and shows every text as text."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from typing import Any

__all__ = ["page"]

_STYLE = """
:root{color-scheme:light dark;--line:#8884;--soft:#8881;--one:#0b62c4}
@media(prefers-color-scheme:dark){:root{--one:#6cb2ff}}
*{box-sizing:border-box}body{font:15px/1.5 system-ui,sans-serif;max-width:76rem;margin:0 auto;padding:1rem}
h1{font-size:1.5rem;overflow-wrap:anywhere}h2{font-size:1.15rem;margin:1.6rem 0 .4rem}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
td,th{padding:.25rem .5rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
.n{text-align:right;white-space:nowrap}code,pre{font:13px/1.45 ui-monospace,monospace}
td.v{overflow-wrap:anywhere;white-space:pre-wrap;min-width:9rem}pre{white-space:pre-wrap;overflow-wrap:anywhere;
background:var(--soft);padding:.7rem;border-radius:6px;max-height:28rem;overflow:auto}
details{border-bottom:1px solid var(--line)}summary{cursor:pointer;padding:.35rem 0;overflow-wrap:anywhere}
details details{margin-left:1rem}input{font:inherit;width:100%;max-width:26rem;padding:.35rem .6rem;
border:1px solid var(--line);border-radius:6px;background:var(--soft);color:inherit}
summary span{opacity:.75}.bars{display:flex;align-items:flex-end;height:90px;gap:1px;max-width:30rem}
.bars i{flex:1;background:var(--one);min-height:1px}.ends{display:flex;justify-content:space-between;max-width:30rem}
"""

_SCRIPT = """
const data=JSON.parse(document.getElementById("data").textContent);
const make=(tag,text,kind)=>{const e=document.createElement(tag);if(text!==undefined)e.textContent=text;
  if(kind)e.className=kind;return e};
const put=(id,...nodes)=>document.getElementById(id).append(...nodes);
const size=n=>{for(const u of["B","kB","MB","GB"]){if(n<1000)return(u==="B"?n:n.toFixed(1))+" "+u;n/=1000}
  return n.toFixed(2)+" TB"};
const show=x=>typeof x==="string"?x:JSON.stringify(x);
const rows=(id,map)=>{for(const[k,v]of Object.entries(map)){const tr=make("tr");
  const key=make("td");key.append(make("code",k));tr.append(key,make("td",show(v),"v"));put(id,tr)}};
rows("facts",data.facts);rows("settings",data.hyperparameters);rows("metadata",data.metadata);

const short=x=>typeof x==="number"?String(Number(x.toPrecision(5))):x;
function detail(t){const box=make("div"),s=t.stats;
  if(!s){box.append(make("p","Values were not read (--no-stats)."));return box}
  const text=`min ${short(s.minimum)}, max ${short(s.maximum)}, mean ${short(s.mean)}, `+
    `deviation ${short(s.std)}, `+
    `zeros ${(100*s.zeros).toFixed(2)} %, not finite ${s.nonfinite}, outliers (beyond 6 deviations) ${s.outliers}`;
  box.append(make("p",text));const bars=make("div",undefined,"bars"),top=Math.max(1,...s.counts.map(c=>Math.sqrt(c)));
  s.counts.forEach(c=>{const i=make("i");i.style.height=100*Math.sqrt(c)/top+"%";i.title=c;bars.append(i)});
  const ends=make("div",undefined,"ends");
  ends.append(...[s.edges[0],"height: square root of count",s.edges[1]].map(x=>make("span",short(x))));
  box.append(bars,ends);return box}
const groups=new Map();
for(const t of data.tensors){const m=t.name.match(/(?:^|\\.)(?:blk|layers|h|block|blocks)[.\\[]?(\\d+)/);
  const g=m?"layer "+m[1]:"outside the layers";if(!groups.has(g))groups.set(g,[]);groups.get(g).push(t)}
const order=g=>Number(g.replace("layer ",""))||(g==="layer 0"?0:-1);
for(const[g,list]of[...groups].sort((a,b)=>order(a[0])-order(b[0]))){const d=make("details"),s=make("summary",g+" ");
  const types=[...new Set(list.map(t=>t.type))].join(", ");
  s.append(make("span",`${list.length} tensors, ${size(list.reduce((a,t)=>a+t.bytes,0))}, ${types}`));d.append(s);
  d.addEventListener("toggle",()=>{if(!d.open||d.dataset.done)return;d.dataset.done=1;
    for(const t of list){const one=make("details"),head=make("summary");one.id="t:"+t.name;
      head.append(make("code",t.name+" "));
      head.append(make("span",`${t.type} ${t.shape.join("x")||"scalar"} ${size(t.bytes)}`+
        (t.stats&&t.stats.outliers?`, ${t.stats.outliers} outliers`:"")));one.append(head);
      one.addEventListener("toggle",()=>{if(one.open&&!one.dataset.done){one.dataset.done=1;one.append(detail(t))}});
      d.append(one)}});
  for(const t of list)t.group=d;put("tensors",d)}

const input=document.getElementById("query"),body=document.getElementById("tokens"),MOST=200;
function search(){const q=input.value,found=[];let count=0;
  data.tokens.forEach((token,id)=>{if(!q||token.includes(q)||String(id)===q){if(count++<MOST)found.push(id)}});
  body.replaceChildren(...found.map(id=>{const tr=make("tr");const text=make("td",undefined,"v");
    text.append(make("code",JSON.stringify(data.tokens[id])));
    tr.append(make("td",id,"n"),text,make("td",data.kinds[id]));return tr}));
  document.getElementById("count").textContent=`${count} of ${data.tokens.length} tokens`+
    (count>MOST?`, the first ${MOST} shown`:"")}
if(data.tokens.length){input.addEventListener("input",search)}else document.getElementById("vocabulary").remove();
if(data.template)document.getElementById("template").textContent=data.template;
else document.getElementById("chat").remove();
function follow(){const h=decodeURIComponent(location.hash.slice(1));
  if(h.startsWith("q="))input.value=h.slice(2);
  if(data.tokens.length)search();
  const t=h.startsWith("t=")&&data.tensors.find(t=>t.name===h.slice(2));
  if(t){t.group.open=true;t.group.dispatchEvent(new Event("toggle"));
    const one=document.getElementById("t:"+t.name);one.open=true;one.dispatchEvent(new Event("toggle"))}}
addEventListener("hashchange",follow);follow();
"""

_BODY = """
<h1>{title}</h1>
<div class="wide"><table><tbody id="facts"></tbody></table></div>
<h2>Tensors</h2><div id="tensors"></div>
<section id="vocabulary"><h2>Vocabulary</h2><input id="query" type="search" placeholder="part of a token, or an id"
aria-label="Search the vocabulary"><p id="count" aria-live="polite"></p>
<div class="wide"><table><tbody id="tokens"></tbody></table></div></section>
<section id="chat"><h2>Chat template</h2><pre id="template"></pre></section>
<h2>Hyper-parameters</h2><div class="wide"><table><tbody id="settings"></tbody></table></div>
<h2>Metadata</h2><div class="wide"><table><tbody id="metadata"></tbody></table></div>
"""


def page(title: str, contents: Mapping[str, Any]) -> str:
    """The page.

    contents: `facts`, `hyperparameters`, `metadata` (name -> value), `tensors` (name, type, shape, bytes and, where
    they were read, stats), `tokens`, `kinds` (of each token), `template`.
    """
    data = json.dumps(contents, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    data = data.encode("utf-8", "backslashreplace").decode()  # half a surrogate pair, of a damaged token
    safe = html.escape(title)
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{safe}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<style>{_STYLE}</style></head><body>{_BODY.replace('{title}', safe)}"
        f'<script type="application/json" id="data">{data}</script><script>{_SCRIPT}</script></body></html>\n'
    )
