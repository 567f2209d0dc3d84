"""Chat templates as twenty families have them: short texts of our own with the constructs that theirs use."""

# ruff: noqa: E501
from __future__ import annotations

__all__ = ["TEMPLATES"]

_ROLE_CHECK = (
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('roles must alternate user/assistant') }}{%- endif %}"
)
TEMPLATES = {
    "chatml": (
        "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "llama 2": (
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% set system = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system = false %}"
        "{% endif %}{% for message in loop_messages %}" + _ROLE_CHECK + "{% if loop.index0 == 0 and system != false %}"
        "{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}"
        "{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
        "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "llama 3.1": (
        "{{- bos_token }}\n{%- if custom_tools is defined %}\n    {%- set tools = custom_tools %}\n{%- endif %}\n"
        "{%- if not date_string is defined %}\n    {%- set date_string = '26 Jul 2024' %}\n{%- endif %}\n"
        "{%- if messages[0]['role'] == 'system' %}\n    {%- set system_message = messages[0]['content']|trim %}\n"
        "    {%- set messages = messages[1:] %}\n{%- else %}\n    {%- set system_message = '' %}\n{%- endif %}\n"
        "{{- '<|start|>system<|end|>\\n\\n' }}\n{%- if tools is not none %}\n    {{- 'Environment: ipython\\n' }}\n"
        "    {%- for t in tools %}\n        {{- t | tojson(indent=4) }}\n        {{- '\\n\\n' }}\n    {%- endfor %}\n"
        "{%- endif %}\n{{- 'Today: ' + date_string + '\\n' }}\n{{- system_message }}\n{%- for message in messages %}\n"
        "    {%- if 'tool_calls' in message %}\n        {%- set call = message.tool_calls[0].function %}\n"
        '        {{- \'{"name": "\' + call.name + \'", "parameters": \' }}\n        {{- call.arguments | tojson }}\n'
        "        {{- '}<|eot|>' }}\n    {%- elif message.role == 'tool' or message.role == 'ipython' %}\n"
        "        {%- if message.content is mapping or message.content is iterable and message.content is not string %}\n"
        "            {{- message.content | tojson }}\n        {%- else %}\n            {{- message.content }}\n"
        "        {%- endif %}\n    {%- else %}\n        {{- '<|' + message['role'] + '|>' + message['content'] | trim }}\n"
        "    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|assistant|>' }}\n{%- endif %}\n"
    ),
    "qwen 2.5": (
        "{%- if tools %}\n    {{- '<|im_start|>system\\n# Tools\\n<tools>' }}\n    {%- for tool in tools %}\n"
        '        {{- "\\n" }}\n        {{- tool | tojson }}\n    {%- endfor %}\n    {{- "\\n</tools><|im_end|>\\n" }}\n'
        "{%- endif %}\n{%- for message in messages %}\n"
        '    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == '
        '"assistant" and not message.tool_calls) %}\n'
        "        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n"
        "    {%- elif message.role == \"assistant\" %}\n        {{- '<|im_start|>' + message.role }}\n"
        "        {%- for tool_call in message.tool_calls %}\n            {%- if tool_call.function is defined %}\n"
        "                {%- set tool_call = tool_call.function %}\n            {%- endif %}\n"
        '            {{- \'\\n<tool_call>\\n{"name": "\' }}{{- tool_call.name }}{{- \'", "arguments": \' }}\n'
        "            {{- tool_call.arguments | tojson }}\n            {{- '}\\n</tool_call>' }}\n        {%- endfor %}\n"
        '    {%- elif message.role == "tool" %}\n'
        '        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}\n'
        "            {{- '<|im_start|>user' }}\n        {%- endif %}\n        {{- '\\n<tool_response>\\n' }}\n"
        "        {{- message.content }}\n"
        "        {%- if loop.last or (messages[loop.index0 + 1].role != \"tool\") %}\n            {{- '<|im_end|>\\n' }}\n"
        "        {%- endif %}\n    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n"
        "    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n"
    ),
    "qwen 3": (
        "{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}\n"
        "{%- for message in messages[::-1] %}\n    {%- set index = (messages|length - 1) - loop.index0 %}\n"
        '    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not('
        "message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}\n"
        "        {%- set ns.multi_step_tool = false %}\n        {%- set ns.last_query_index = index %}\n    {%- endif %}\n"
        "{%- endfor %}\n{%- for message in messages %}\n    {%- if message.content is string %}\n"
        "        {%- set content = message.content %}\n    {%- else %}\n        {%- set content = '' %}\n    {%- endif %}\n"
        "    {%- if message.role == \"assistant\" %}\n        {%- set reasoning_content = '' %}\n"
        "        {%- if message.reasoning_content is string %}\n"
        "            {%- set reasoning_content = message.reasoning_content %}\n"
        "        {%- elif '</think>' in content %}\n"
        "            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1] %}\n"
        "            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}\n        {%- endif %}\n"
        "        {%- if loop.index0 > ns.last_query_index %}\n"
        "            {{- '<think>' + reasoning_content.strip('\\n') + '</think>' + content }}\n        {%- else %}\n"
        "            {{- content }}\n        {%- endif %}\n    {%- else %}\n"
        "        {{- '<|' + message.role + '|>' + content }}\n    {%- endif %}\n{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n    {{- '<|assistant|>' }}\n"
        "    {%- if enable_thinking is defined and enable_thinking is false %}\n        {{- '<think></think>' }}\n"
        "    {%- endif %}\n{%- endif %}"
    ),
    "mistral": (
        "{%- set user_messages = messages | selectattr('role', 'equalto', 'user') | list %}\n{{- bos_token }}\n"
        "{%- for message in messages %}\n{%- if message['role'] == 'user' %}\n"
        "{%- if tools is not none and (message == user_messages[-1]) %}\n{{- '[AVAILABLE_TOOLS] [' }}\n"
        '{%- for tool in tools %}\n{%- set tool = tool.function %}\n{{- \'{"type": "function", "function": {\' }}\n'
        '{%- for key, val in tool.items() if key != "return" %}\n{%- if val is string %}\n'
        "{{- '\"' + key + '\": \"' + val + '\"' }}\n{%- else %}\n{{- '\"' + key + '\": ' + val|tojson }}\n{%- endif %}\n"
        "{%- if not loop.last %}\n{{- ', ' }}\n{%- endif %}\n{%- endfor %}\n{{- '}}' }}\n{%- if not loop.last %}\n{{- ', ' }}\n"
        "{%- else %}\n{{- ']' }}\n{%- endif %}\n{%- endfor %}\n{{- '[/AVAILABLE_TOOLS]' }}\n{%- endif %}\n"
        "{{- '[INST] ' + message['content'] + '[/INST]' }}\n{%- elif message['role'] == 'assistant' and message.content %}\n"
        "{{- ' ' + message['content']|trim + eos_token }}\n{%- endif %}\n{%- endfor %}"
    ),
    "gemma": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for message in messages %}" + _ROLE_CHECK + "{% if (message['role'] == 'assistant') %}"
        "{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
        "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"
    ),
    "gemma 3": (
        "{{ bos_token }}\n{%- if messages[0]['role'] == 'system' -%}\n"
        "    {%- if messages[0]['content'] is string -%}\n"
        "        {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}\n    {%- else -%}\n"
        "        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\n\n' -%}\n    {%- endif -%}\n"
        "    {%- set loop_messages = messages[1:] -%}\n{%- else -%}\n    {%- set first_user_prefix = '' -%}\n"
        "    {%- set loop_messages = messages -%}\n{%- endif -%}\n{%- for message in loop_messages -%}\n"
        "    {{ '<start_of_turn>' + message['role'] + '\n' + (first_user_prefix if loop.first else '') }}\n"
        "    {%- if message['content'] is string -%}\n        {{ message['content'] | trim }}\n"
        "    {%- elif message['content'] is iterable -%}\n        {%- for item in message['content'] -%}\n"
        "            {%- if item['type'] == 'image' -%}\n                {{ '<start_of_image>' }}\n"
        "            {%- elif item['type'] == 'text' -%}\n                {{ item['text'] | trim }}\n"
        "            {%- endif -%}\n        {%- endfor -%}\n    {%- else -%}\n"
        "        {{ raise_exception('Invalid content type') }}\n    {%- endif -%}\n    {{ '<end_of_turn>\n' }}\n"
        "{%- endfor -%}\n{%- if add_generation_prompt -%}\n    {{ '<start_of_turn>model\n' }}\n{%- endif -%}\n"
    ),
    "phi 3": (
        "{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}"
        "{{'<|system|>\\n' + message['content'] + '<|end|>\\n'}}{% elif message['role'] == 'user' %}"
        "{{'<|user|>\\n' + message['content'] + '<|end|>\\n'}}{% elif message['role'] == 'assistant' %}"
        "{{'<|assistant|>\\n' + message['content'] + '<|end|>\\n'}}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
    ),
    "phi 4 mini": (
        "{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message and "
        "message['tools'] is not none %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + "
        "message['tools'] + '<|/tool|>' }}{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
    ),
    "command r": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% set system_message = messages[0]['content'] %}{% elif false == true %}{% set loop_messages = messages %}"
        "{% set system_message = 'You are Command-R.' %}{% else %}{% set loop_messages = messages %}"
        "{% set system_message = false %}{% endif %}{% if system_message != false %}{{ '<|SYSTEM|>' + system_message }}"
        "{% endif %}{%- macro kind(p) -%}{%- if p.type == 'string' -%}{{- 'str' -}}{%- elif p.type == 'integer' -%}"
        "{{- 'int' -}}{%- else -%}{{- 'object' -}}{%- endif -%}{%- endmacro -%}{% for tool in tools or [] %}"
        "{{ 'def ' + tool.function.name + '(' }}{% for name, p in tool.function.parameters.properties | dictsort %}"
        "{{ name ~ ': ' ~ kind(p) }}{% if not loop.last %}{{ ', ' }}{% endif %}{% endfor %}{{ ')' }}{% endfor %}"
        "{% for document in documents or [] %}{{ '\\nDocument: ' ~ loop.index0 }}{% for key, value in document.items() %}"
        "{{ '\\n' ~ key|title ~ ': ' ~ value }}{% endfor %}{% endfor %}{% for message in loop_messages %}"
        "{{ '<|' ~ message.role|upper ~ '|>' ~ message.content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|CHATBOT|>' }}{% endif %}"
    ),
    "hermes": (
        "{{ bos_token }}{{ '<|im_start|>system\\n' }}{%- for tool in tools %}"
        "{{- '{\"name\": ' + tool.function.name | tojson + ', \"parameters\": ' }}"
        "{{- tool.function.parameters | tojson(separators=(',', ':'), sort_keys=true) }}{{- '}' }}"
        "{%- if not loop.last %}{{- '\\n' }}{%- endif %}{%- endfor %}{%- for message in messages %}"
        "{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') + '<|im_end|>\\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
    ),
    "deepseek v3": (
        "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
        "{% set ns = namespace(is_first=false, is_tool=false, system_prompt='', is_last_user=false) %}"
        "{%- for message in messages %}{%- if message['role'] == 'system' %}"
        "{%- set ns.system_prompt = ns.system_prompt + message['content'] %}{%- endif %}{%- endfor %}{{ bos_token }}"
        "{{ ns.system_prompt }}{%- for message in messages %}{%- if message['role'] == 'user' %}"
        "{%- set ns.is_last_user = true -%}{{'<｜User｜>' + message['content']}}{%- endif %}"
        "{%- if message['role'] == 'assistant' and message['tool_calls'] is defined and message['tool_calls'] is not none %}"
        "{%- set ns.is_last_user = false -%}{%- for tool in message['tool_calls'] %}"
        "{{- '<｜call｜>' + tool['function']['name'] + '\\n```json\\n' + tool['function']['arguments'] | tojson + '\\n```' }}"
        "{%- endfor %}{%- elif message['role'] == 'assistant' %}{%- set content = message['content'] %}"
        "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
        "{{- '<｜Assistant｜>' + content + '<｜end｜>' }}{%- endif %}{%- if message['role'] == 'tool' %}"
        "{{- '<｜tool｜>' + message['content'] + '<｜tool end｜>' }}{%- endif %}{%- endfor -%}"
        "{% if add_generation_prompt and ns.is_last_user %}{{'<｜Assistant｜><think>\\n'}}{% endif %}"
    ),
    "glm 4": (
        "[gMASK]<sop>\n{%- if tools %}<|system|>\n# Tools\n{% for tool in tools %}\n{{ tool | tojson(ensure_ascii=False) }}\n"
        "{% endfor %}{%- endif -%}\n{%- macro visible_text(content) -%}\n    {%- if content is string -%}\n"
        "        {{- content }}\n    {%- elif content is iterable and content is not mapping -%}\n"
        "        {%- for item in content -%}\n            {%- if item is mapping and item.type == 'text' -%}\n"
        "                {{- item.text }}\n            {%- elif item is string -%}\n                {{- item }}\n"
        "            {%- endif -%}\n        {%- endfor -%}\n    {%- else -%}\n        {{- content }}\n    {%- endif -%}\n"
        "{%- endmacro -%}\n{% for m in messages %}\n{%- if m.role == 'user' -%}<|user|>\n{{ visible_text(m.content) }}\n"
        "{{- '/nothink' if (enable_thinking is defined and not enable_thinking and not "
        "visible_text(m.content).endswith(\"/nothink\")) else '' -}}\n"
        "{%- elif m.role == 'assistant' -%}<|assistant|>\n{{ visible_text(m.content).strip() }}\n{%- endif -%}\n"
        "{%- endfor -%}\n{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
    ),
    "gpt-oss": (
        "{%- set knowledge = 'Knowledge cutoff: 2024-06\\n' -%}{{- '<|start|>system<|message|>' + knowledge }}"
        "{{- 'Year: ' + (strftime_now('%Y')|length|string) }}\n{%- if tools %}{{- '# Tools\\nnamespace functions {\\n' }}"
        "{%- for tool in tools %}{%- set tool = tool.function %}{{- '// ' + tool.description + '\\n' }}"
        "{{- 'type ' + tool.name + ' = (' }}{%- for name, spec in tool.parameters.properties.items() %}"
        "{%- if name in (tool.parameters.required or []) %}{{- name + ': ' }}{%- else %}{{- name + '?: ' }}{%- endif %}"
        "{{- spec.type }}{%- if not loop.last %}{{- ', ' }}{%- endif %}{%- endfor %}{{- ') => any;\\n' }}{%- endfor %}"
        "{{- '}' }}{%- endif %}{%- for message in messages %}{%- if message.role == 'assistant' %}"
        "{%- if message.thinking %}{{- '<|channel|>analysis<|message|>' + message.thinking + '<|end|>' }}{%- endif %}"
        "{%- generation %}{{- '<|channel|>final<|message|>' + (message.content or '') }}{%- endgeneration %}{{- '<|end|>' }}"
        "{%- else %}{{- '<|start|>' + message.role + '<|message|>' + message.content|string + '<|end|>' }}{%- endif %}"
        "{%- endfor %}{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}"
    ),
    "smollm 3": (
        "{%- if enable_thinking is not defined -%}{%- set enable_thinking = true -%}{%- endif -%}"
        "{%- set reasoning_mode = '/think' if enable_thinking else '/no_think' -%}{{- '<|im_start|>system\\n' -}}"
        "{%- set today = strftime_now('%d') -%}{{- 'Mode: ' ~ reasoning_mode ~ ' ' ~ today|length ~ '\\n' -}}"
        "{%- if xml_tools or python_tools -%}{{- 'tools' -}}{%- endif -%}{%- for message in messages -%}"
        "{%- if message.role == 'system' %}{%- continue %}{%- endif %}"
        "{%- set content = message.content if message.content is string else '' -%}{%- if message.role == 'assistant' -%}"
        "{% generation %}{{ '<|im_start|>assistant\\n' + content.lstrip('\\n') + '<|im_end|>\\n' }}{% endgeneration %}"
        "{%- else -%}{{ '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
    ),
    "granite": (
        "{%- set ns = namespace(found=false, n=0) %}{%- for message in messages %}{%- if loop.index > 50 %}{%- break %}"
        "{%- endif %}{%- set ns.n = ns.n + (1 if message.content | default('', true) | length > 0 else 0) %}{%- endfor %}"
        "{%- if documents %}{%- for d in documents %}{{- '<doc ' + loop.index|string + '>' + d['text'] + '</doc>' }}"
        "{%- endfor %}{%- endif %}{%- if tools %}{{- tools | map(attribute='function') | map(attribute='name') | join(', ') }}"
        "{%- endif %}{{- '<n>' ~ ns.n ~ '</n>' }}{%- for message in messages %}{{- '<|start_of_role|>' + message['role'] + "
        "'<|end_of_role|>' + (message['content']|default('', true)|string) + '<|end_of_text|>\\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|start_of_role|>assistant' }}{%- if controls %}{{- ' ' + controls | tojson() }}"
        "{%- endif %}{{- '<|end_of_role|>' }}{%- endif %}"
    ),
    "functionary": (
        "{%- macro type_of(p) -%}{%- if p.enum is defined -%}{{ p.enum | map('tojson') | join(' | ') }}"
        "{%- elif p.type == 'array' -%}{{ type_of(p['items']) ~ '[]' }}{%- else -%}{{ p.type | default('any') }}{%- endif -%}"
        "{%- endmacro -%}{%- for tool in tools or [] -%}{{- tool.function.name ~ '(' -}}"
        "{%- for key in tool.function.parameters.properties.keys()|sort -%}"
        "{{- key ~ ': ' ~ type_of(tool.function.parameters.properties[key]) -}}{{- ', ' if not loop.last -}}{%- endfor -%}"
        "{{- ')\\n' -}}{%- endfor -%}{%- for m in messages -%}{{- m.role ~ ': ' ~ (m.content if m.content else '') -}}"
        "{%- for c in m.tool_calls or [] -%}{{- '>>>' ~ c['function']['name'] ~ c.function.arguments|tojson -}}{%- endfor -%}"
        "{%- endfor -%}{{- '>>>' if add_generation_prompt -}}"
    ),
    "olmo 2": (
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
        "{{ '<|system|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'assistant' %}{% if not loop.last %}"
        "{{ '<|assistant|>\n' + message['content'] + eos_token + '\n' }}{% else %}"
        "{{ '<|assistant|>\n' + message['content'] + eos_token }}{% endif %}{% else %}"
        "{{ '<|user|>\n' + message['content'] + '\n' }}{% endif %}{% if loop.last and add_generation_prompt %}"
        "{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
    ),
    "ministral": (
        "{%- set default_system = 'Today is ' ~ strftime_now('%Y-%m-%d') %}\n"
        "{%- for message in messages | rejectattr('role', 'equalto', 'system') %}\n"
        "    {%- if message.content is not string %}\n        {%- for block in message.content or [] %}\n"
        "            {%- if block['type'] == 'text' %}\n                {{- block['text'] }}\n"
        "            {%- elif block['type'] in ['image', 'image_url'] %}\n                {{- '[IMG]' }}\n"
        "            {%- else %}\n                {{- raise_exception('Only text and image blocks are supported.') }}\n"
        "            {%- endif %}\n        {%- endfor %}\n    {%- else %}\n"
        "        {{- '[' ~ message.role | upper ~ ']' ~ message.content }}\n    {%- endif %}\n{%- endfor %}\n"
        "{{- default_system | length }}"
    ),
    "falcon": (
        "{% for message in messages %}{% if not loop.first %}{{ '\n' }}{% endif %}{{ message['role'] | capitalize + ': ' + "
        "message['content'].strip().replace('\r\n', '\n').replace('\n\n', '\n') }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '\n' + 'Assistant:' }}{% endif %}"
    ),
}
