(comment) @comment
(string) @string
(number) @number
(boolean) @constant.builtin.boolean

[
  "model" "block" "train" "router" "import" "let" "state" "update" "aux" "return" "as"
] @keyword
["if" "else"] @keyword.control.conditional
"repeat" @keyword.control.repeat

(model (name) @type)
(block (name) @type)
(router . "router" . (name) @function)
(parameter . (name) @variable.parameter)
(parameter ":" . (name) @type.builtin)

(layer . (name) @function)
(call . (name) @function (arguments))
(argument . (name) @variable.parameter ":")
(setting_name) @property
(train_setting . (name) @property)
(binding (name) @variable)
(router_let (name) @variable)
(repeat "as" . (name) @variable)

(binary_operator) @operator
(unary_operator) @operator
"=" @operator
["(" ")" "[" "]" "{" "}"] @punctuation.bracket
["," ":"] @punctuation.delimiter
